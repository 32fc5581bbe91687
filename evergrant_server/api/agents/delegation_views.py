"""A delegation as the API shows it: its chain, and whether it counts."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from evergrant_server.api.http.models import View
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegations import Delegation, chain_problem
from evergrant_server.store import Transaction


class DelegationState(StrEnum):
    LIVE = "live"
    STOPPED = "stopped"  # it, or one above it
    EXPIRED = "expired"


class DelegationView(View):
    """`act` says who acts for `subject`: the outermost `sub` does, for the one inside it, and so on to the
    app that the person's token was given to (RFC 8693 section 4.1). `parent_id` null: it is the root, which
    is the session. `scopes`, `integrations` and `connections` null: no bound but the permits of all these
    apps. `began_by`: the rule that accepted the person's token, or the delegation it came of. `may_act`: the
    only app that may exchange it. `state` is that of the rows; an app that was disabled ends it too.
    """

    id: str
    session_id: str
    parent_id: str | None
    depth: int
    app: str
    subject: str
    act: dict[str, Any]
    scopes: tuple[str, ...] | None
    integrations: tuple[str, ...] | None
    connections: tuple[str, ...] | None
    actions: tuple[Action, ...]
    may_act: str | None
    began_by: str
    state: DelegationState
    created_at: datetime
    expires_at: datetime
    stopped_at: datetime | None
    stopped_by: str | None
    stop_reason: str | None


async def viewed(tx: Transaction, one: Delegation, now: datetime) -> DelegationView:
    chain = await tx.delegations.chain(one)
    names: dict[str, str] = {}
    for id in {*(it.app_id for it in chain), *([one.may_act] if one.may_act else [])}:
        app = await tx.access.app(one.tenant, id)
        names[id] = id if app is None else app.name
    act: dict[str, Any] = {}
    for it in chain:
        act = {"sub": f"app:{names[it.app_id]}", **({"act": act} if act else {})}
    reach = one.reach
    return DelegationView.of(
        one,
        began_by=one.proof,
        session_id=one.root_id,
        depth=len(one.path),
        app=names[one.app_id],
        act=act,
        scopes=reach.scopes,
        integrations=reach.integrations,
        connections=reach.connections,
        actions=reach.actions,
        may_act=names[one.may_act] if one.may_act else None,
        state=_state(chain, now),
    )


def _state(chain: tuple[Delegation, ...], now: datetime) -> DelegationState:
    if now >= chain[-1].expires_at:
        return DelegationState.EXPIRED
    return DelegationState.LIVE if chain_problem(chain, now) is None else DelegationState.STOPPED
