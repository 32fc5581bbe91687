"""`GET /v1/delegations/{id}/explain`: may a connection be used by a delegation, and which link says no.

Judges as a lease or a call does, and starts nothing.
"""

from typing import Annotated

from fastapi import APIRouter, Query

from evergrant_server.access.callers import authority_of
from evergrant_server.api.agents.delegations import visible_delegation
from evergrant_server.api.apps.explain import Obstacle, ScopeList
from evergrant_server.api.http.call import Call
from evergrant_server.api.http.models import View
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, DelegationId
from evergrant_server.policy import (
    DecisionReason,
    DelegationLink,
    PermitQuestion,
    ProxiedRequest,
    Target,
    decide_delegated,
)
from evergrant_server.problems import require_found

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
    async with call.api.store.read() as tx:
        own = await visible_delegation(tx, call, delegation_id)
        found = require_found(await tx.connections.get(call.tenant, ConnectionId(connection)))
        require_found(found if found.subject == own.subject else None)
        grant = await tx.grants.get(found.tenant, found.id)
        stopped: tuple[Obstacle, ...] = ()
        links: list[tuple[DelegationId, str, DelegationLink]] = []
        try:
            authority = await authority_of(tx, own, call.now)
            ids = zip(authority.chain, authority.apps, authority.links, strict=True)
            links = [(one.id, app.name, link) for one, app, link in ids]
        except Failure as failure:
            if failure.code is ErrorCode.AUTHORITY_BROKEN:
                raise
            stopped = (Obstacle(code=failure.code, detail=failure.detail),)
    judged = _judged(call.api.registry.offline_scope(found.provider), found, grant, scopes)
    proxied = ProxiedRequest.asked_about(method, path, None)
    aliases = call.api.registry.scope_aliases(found.provider)
    question = PermitQuestion(Target.of(found), action, call.now, None, judged, (), proxied, aliases)
    chain = tuple(_link(id, name, link, question) for id, name, link in links)
    return DelegationExplanation(
        delegation_id=own.id,
        session_id=own.root_id,
        subject=own.subject,
        connection_id=found.id,
        action=action,
        scopes=judged,
        allowed=bool(chain) and all(it.allowed for it in chain),
        chain=chain,
        stopped_by=stopped,
    )


def _judged(offline: str | None, found: Connection, grant: Grant | None, scopes: str) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(filter(None, scopes.split(" "))))
    of_token = found.requested_scopes if grant is None else grant.scopes
    return tuple(it for it in asked or of_token if it != offline)


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
