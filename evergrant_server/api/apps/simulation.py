"""`POST /v1/access/simulate`: which leases of an app a change of its permits would have refused.

Judged against the connections that the app has leased, as the ledger recorded them. Changes nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from evergrant_server.access.judgement import PermitJudge, without_offline
from evergrant_server.api.apps.permits import PermitBody
from evergrant_server.api.apps.routes import require_app
from evergrant_server.api.http.call import AdminCall, ApiCall
from evergrant_server.api.http.models import Body, Slug, UtcDatetime, View
from evergrant_server.core.access import Action, App, Permit
from evergrant_server.core.ids import PermitId
from evergrant_server.policy import DecisionReason, PermitDecision, Target, decide
from evergrant_server.store.review.lease_uses import LeasedConnection, leased_connections

router = APIRouter(tags=["apps"])

_USUAL_WINDOW = timedelta(days=30)
_MOST_JUDGED = 5000
_MOST_SHOWN = 200


class SimulationBody(Body):
    """`permits`: by name what each would become; null removes it. The app's others stay as they are.

    Leases from `since` on count, by default of the last thirty days.
    """

    app: Slug
    permits: Annotated[dict[Slug, PermitBody | None], Field(min_length=1, max_length=50)]
    since: UtcDatetime | None = None


class LostAccess(View):
    """A connection that the app has leased and couldn't lease any more: why not, and by which permit."""

    connection_id: str
    integration: str
    subject: str
    leased_at: datetime
    reason: DecisionReason
    permit: str | None


class Simulation(View):
    """`judged` connections were leased by the app since then, the newest first; `complete`: those are all.

    `would_lose` has at most 200 of the `lost`.
    """

    app: str
    since: datetime
    judged: int
    complete: bool
    lost: int
    would_lose: tuple[LostAccess, ...]


@router.post("/v1/access/simulate")
async def simulate_change(call: AdminCall, body: SimulationBody) -> Simulation:
    """Who would lose access if an app's permits were changed so, judged against the leases of the last time.

    Permits with `sources` are taken as if the caller's address fitted, unless they are among the changes:
    addresses aren't recorded.
    """
    since = body.since or call.now - _USUAL_WINDOW
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, body.app)
        permits = await tx.access.permits_of(app)
        leased = await leased_connections(tx, call.tenant, app.id, since, _MOST_JUDGED + 1)
    before = [permit.__replace__(sources=None) for permit in permits]
    after = _changed(call, app, before, body)
    judged = leased[:_MOST_JUDGED]
    lost = [loss for lease in judged if (loss := _lost(call, lease, before, after)) is not None]
    return Simulation(
        app=app.name,
        since=since,
        judged=len(judged),
        complete=len(leased) <= _MOST_JUDGED,
        lost=len(lost),
        would_lose=tuple(lost[:_MOST_SHOWN]),
    )


def _changed(call: ApiCall, app: App, before: Sequence[Permit], body: SimulationBody) -> list[Permit]:
    kept = [permit for permit in before if permit.name not in body.permits]
    owned = {"tenant": call.tenant, "id": PermitId(""), "app_id": app.id, "created_at": call.now}
    made = [Permit(**owned, name=name, **dict(put)) for name, put in body.permits.items() if put is not None]
    return [*kept, *made]


def _lost(
    call: ApiCall, lease: LeasedConnection, before: Sequence[Permit], after: Sequence[Permit]
) -> LostAccess | None:
    decision = _judge(call, lease, after)
    if decision.allowed or not _judge(call, lease, before).allowed:
        return None
    return LostAccess(
        connection_id=lease.id,
        integration=lease.integration,
        subject=lease.subject,
        leased_at=lease.leased_at,
        reason=decision.reason,
        permit=decision.permit_name,
    )


def _judge(call: ApiCall, lease: LeasedConnection, permits: Sequence[Permit]) -> PermitDecision:
    """As a lease that requests all of the token's scopes."""
    judge = PermitJudge(call.api.registry, partial(decide, permits), call.now, None)
    target = Target(lease.integration, lease.provider, lease.subject, lease.id)
    scopes = without_offline(call.api.registry, lease.provider, lease.scopes)
    return judge.decide(judge.question(Action.TOKEN, target, scopes))
