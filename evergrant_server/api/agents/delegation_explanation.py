"""`GET /v1/delegations/{id}/explain`: may a connection be used by a delegation, and which link says no.

Judges by the functions of the lease decision (`access.judgement`), and starts nothing.
"""

from datetime import datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query

from evergrant_server.access.callers import DelegatedAuthority, authority_of
from evergrant_server.access.judgement import NO_PERMIT, PermitJudge
from evergrant_server.api.agents.delegations import visible_delegation
from evergrant_server.api.apps.explain import (
    Obstacle,
    ScopeList,
    explained_connection,
    obstacles_of,
    split_scopes,
)
from evergrant_server.api.http.call import ApiCall, Call
from evergrant_server.api.http.models import View
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import DelegationId
from evergrant_server.policy import (
    DecisionReason,
    DelegationLink,
    PermitQuestion,
    ProxiedRequest,
    decide_delegated,
)
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["agents"])


class LinkExplanation(View):
    """What one link of the chain says: the delegation's own bounds first, then the permits of its app."""

    delegation_id: str
    app: str
    allowed: bool
    reason: DecisionReason
    permit: str | None
    scopes: tuple[str, ...]


class DelegationExplanation(View):
    """`chain` begins with the app that the person's token was given to, and ends with the one that acts. A
    request succeeds when each of them allows it and `stopped_by` is empty. `scopes` are those judged, all of
    the token's, or those that were asked for where the token has more and is narrowed to these."""

    delegation_id: str
    session_id: str
    subject: str
    connection_id: str
    action: Action
    scopes: tuple[str, ...]
    allowed: bool
    chain: tuple[LinkExplanation, ...]
    stopped_by: tuple[Obstacle, ...]


@router.get("/v1/delegations/{delegation_id}/explain")
async def explain_delegation(
    delegation_id: str,
    call: Call,
    connection: Annotated[str, Query(max_length=100)],
    scopes: ScopeList = "",
    action: Action = Action.TOKEN,
    method: Annotated[str | None, Query(pattern="^[A-Z]{1,20}$")] = None,
    path: Annotated[str | None, Query(max_length=4000, pattern="^/")] = None,
) -> DelegationExplanation:
    """Who acts for whom, and which of them lets a connection be used. For those who may read the delegation.

    `method` and `path` are those of a request to the provider's API (`action=proxy`).
    """
    requested = split_scopes(scopes)
    async with call.api.store.read() as tx:
        delegation = await visible_delegation(tx, call, delegation_id)
        explained = require_found(await explained_connection(tx, call, connection))
        require_found(explained if explained.row.subject == delegation.subject else None)
        authority, ended = await _authority(tx, delegation, call.now)
    judge = _judge(call, authority)
    proxied = ProxiedRequest.asked_about(method, path, None, explained.method_overrides)
    question = explained.question(judge, action, requested, proxied)
    chain = () if authority is None else _explained_links(authority, question)
    return DelegationExplanation(
        delegation_id=delegation.id,
        session_id=delegation.root_id,
        subject=delegation.subject,
        connection_id=explained.row.connection_id,
        action=action,
        scopes=question.scopes,
        allowed=bool(chain) and all(link.allowed for link in chain),
        chain=chain,
        stopped_by=(*obstacles_of(ended), *explained.obstacles(judge, action, requested)),
    )


async def _authority(
    tx: Transaction, delegation: Delegation, now: datetime
) -> tuple[DelegatedAuthority | None, Failure | None]:
    """The authority behind the delegation, or why it counts no more. Raises Failure AUTHORITY_BROKEN."""
    try:
        return await authority_of(tx, delegation, now), None
    except Failure as failure:
        if failure.code is ErrorCode.AUTHORITY_BROKEN:
            raise
        return None, failure


def _judge(call: ApiCall, authority: DelegatedAuthority | None) -> PermitJudge:
    if authority is None:
        return PermitJudge(call.api.registry, lambda _: NO_PERMIT, call.now, None)
    decide = partial(decide_delegated, authority.links)
    return PermitJudge(call.api.registry, decide, call.now, None, authority.narrows)


def _explained_links(authority: DelegatedAuthority, question: PermitQuestion) -> tuple[LinkExplanation, ...]:
    links = zip(authority.chain, authority.apps, authority.links, strict=True)
    return tuple(_link(delegation.id, app.name, link, question) for delegation, app, link in links)


def _link(id: DelegationId, app: str, link: DelegationLink, question: PermitQuestion) -> LinkExplanation:
    decision = decide_delegated([link], question)
    return LinkExplanation(
        delegation_id=id,
        app=app,
        allowed=decision.allowed,
        reason=decision.reason,
        permit=decision.permit_name,
        scopes=decision.refused_scopes,
    )
