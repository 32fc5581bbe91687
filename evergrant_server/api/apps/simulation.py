"""`POST /v1/access/simulate`: what an app's changed permits would reach, and what of the last time they would
have refused.

Judged against the connections that the app has leased, and its recorded leases and calls. Changes nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, NamedTuple

from fastapi import APIRouter
from pydantic import Field

from evergrant_server import audit
from evergrant_server.access.judgement import PermitJudge, without_offline
from evergrant_server.api.apps.permits import PermitBody
from evergrant_server.api.apps.reach import MOST_COVERED, CoveredView, words_of
from evergrant_server.api.apps.routes import require_app
from evergrant_server.api.http.call import AdminCall, ApiCall
from evergrant_server.api.http.models import Body, Slug, UtcDatetime, View
from evergrant_server.core.access import MOST_PERMITS, Action, App, Permit
from evergrant_server.core.audit import AuditRecord
from evergrant_server.core.ids import PermitId
from evergrant_server.policy import DecisionReason, PermitDecision, ProxiedRequest, Target, decide
from evergrant_server.store import Transaction
from evergrant_server.store.access_review import (
    LeasedConnection,
    count_covered,
    covered_connections,
    leased_connections,
)
from evergrant_server.store.audit_tables import LEASE_ACTIONS

router = APIRouter(tags=["apps"])

_USUAL_WINDOW = timedelta(days=30)
_MOST_JUDGED = 5000
_MOST_SHOWN = 200
_MOST_REACHED = 50
# of the audit log: the newest records of the connections that were leased last
_MOST_READ_CONNECTIONS, _MOST_READ, _MOST_READ_OF_ONE = 100, 2000, 500


class SimulationBody(Body):
    """`permits`: by name what each would become; null removes it. The app's others stay as they are.

    Leases from `since` on count, by default of the last thirty days.
    """

    app: Slug
    permits: Annotated[dict[Slug, PermitBody | None], Field(min_length=1, max_length=MOST_PERMITS)]
    since: UtcDatetime | None = None


class LostAccess(View):
    """A connection that the app has leased and couldn't lease any more: why not, and by which permit."""

    connection_id: str
    integration: str
    subject: str
    leased_at: datetime
    reason: DecisionReason
    permit: str | None


class LostUse(View):
    """`uses` recorded leases or calls of a connection that would be refused alike, the last at `last_at`.
    `request`: of calls, method and path, or the tool of an MCP server."""

    connection_id: str
    integration: str
    subject: str
    action: Action
    request: str | None
    uses: int
    last_at: datetime
    reason: DecisionReason
    permit: str | None


class SimulatedUses(View):
    """Of the app's newest recorded leases and calls since then `judged`, of which `lost` would be refused;
    `complete`: those are all. `would_lose` has at most 200 groups, those with the most uses first.

    A lease is judged with the token's scopes of that time, and a call by its method and path, or its tool.
    What isn't recorded is taken as harmless: the caller's address, the scopes that a lease requested, a
    second method that a call named.
    """

    judged: int
    complete: bool
    lost: int
    would_lose: tuple[LostUse, ...]


class SimulatedPermit(View):
    """A changed permit in plain words, null where it is removed; `words_before` are those of now, null where
    it is new. It would cover, or covers until then, `live_connections`, the first ten of which are `covered`.
    """

    permit: str
    words: str | None
    words_before: str | None
    live_connections: int
    covered: tuple[CoveredView, ...]


class Simulation(View):
    """`judged` connections were leased by the app since then, the newest first; `complete`: those are all.

    `would_lose` has at most 200 of the `lost`. `uses` says the same of single leases and calls, and `permits`
    what the first fifty changed permits reach.
    """

    app: str
    since: datetime
    judged: int
    complete: bool
    lost: int
    would_lose: tuple[LostAccess, ...]
    uses: SimulatedUses
    permits: tuple[SimulatedPermit, ...]


@router.post("/v1/access/simulate")
async def simulate_change(call: AdminCall, body: SimulationBody) -> Simulation:
    """What an app's changed permits would reach, and who would have lost what, judged against the leases and
    calls of the last time.

    Permits with `sources` are taken as if the caller's address fitted, unless these are changed: addresses
    aren't recorded.
    """
    since = body.since or call.now - _USUAL_WINDOW
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, body.app)
        permits = await tx.access.permits_of(app)
        leased = await leased_connections(tx, call.tenant, app.id, since, _MOST_JUDGED + 1)
        recorded = await _recorded_uses(tx, app, leased[:_MOST_JUDGED], since)
        made = _made(call, app, body)
        reached = [await _reached(tx, *change) for change in _changes(permits, made, body)[:_MOST_REACHED]]
    before = [permit.__replace__(sources=None) for permit in permits]
    kept = {(permit.name, permit.sources) for permit in permits}
    after = [permit for permit in before if permit.name not in body.permits]
    after += [
        permit.__replace__(sources=None) if (permit.name, permit.sources) in kept else permit
        for permit in made
    ]
    judges = _Judges(
        *(PermitJudge(call.api.registry, partial(decide, rules), call.now, None) for rules in (before, after))
    )
    judged = leased[:_MOST_JUDGED]
    lost = [loss for lease in judged if (loss := _lost(judges, lease)) is not None]
    return Simulation(
        app=app.name,
        since=since,
        judged=len(judged),
        complete=len(leased) <= _MOST_JUDGED,
        lost=len(lost),
        would_lose=tuple(lost[:_MOST_SHOWN]),
        uses=_judged_uses(judges, recorded, complete=recorded.complete and len(leased) <= _MOST_JUDGED),
        permits=tuple(reached),
    )


def _made(call: ApiCall, app: App, body: SimulationBody) -> list[Permit]:
    """The permits that the change puts."""
    owned = {"tenant": call.tenant, "id": PermitId(""), "app_id": app.id, "created_at": call.now}
    return [Permit(**owned, name=name, **dict(put)) for name, put in body.permits.items() if put is not None]


def _changes(
    permits: Sequence[Permit], made: Sequence[Permit], body: SimulationBody
) -> list[tuple[Permit | None, Permit | None]]:
    """What each changed permit is now, and what it would become. One that is neither is left out."""
    now, then = ({permit.name: permit for permit in rules} for rules in (permits, made))
    changes = [(now.get(name), then.get(name)) for name in body.permits]
    return [change for change in changes if change != (None, None)]


async def _reached(tx: Transaction, before: Permit | None, after: Permit | None) -> SimulatedPermit:
    permit = after or before
    assert permit is not None
    fields = permit.model_dump(mode="json")
    covered = await covered_connections(tx, permit.tenant, fields, MOST_COVERED)
    return SimulatedPermit(
        permit=permit.name,
        words=None if after is None else words_of(after),
        words_before=None if before is None else words_of(before),
        live_connections=await count_covered(tx, permit.tenant, fields),
        covered=tuple(map(CoveredView.of, covered)),
    )


# --- by the permits of now, and by the changed ones ----------------------------------------------


class _Judges(NamedTuple):
    before: PermitJudge
    after: PermitJudge

    def refusal(
        self,
        lease: LeasedConnection,
        action: Action,
        scopes: Sequence[str],
        request: ProxiedRequest | None = None,
    ) -> PermitDecision | None:
        """The decision that the change would make of what is allowed now; None: it stays as it is."""
        target = Target(lease.integration, lease.provider, lease.subject, lease.id)
        counted = without_offline(self.before.registry, lease.provider, tuple(scopes))
        question = self.before.question(action, target, counted, proxied=request)
        decision = self.after.decide(question)
        return None if decision.allowed or not self.before.decide(question).allowed else decision


def _lost(judges: _Judges, lease: LeasedConnection) -> LostAccess | None:
    """As a lease that requests all of the token's scopes."""
    refusal = judges.refusal(lease, Action.TOKEN, lease.scopes)
    if refusal is None:
        return None
    return LostAccess(
        connection_id=lease.id,
        integration=lease.integration,
        subject=lease.subject,
        leased_at=lease.leased_at,
        reason=refusal.reason,
        permit=refusal.permit_name,
    )


# --- single leases and calls, as the audit log has them ------------------------------------------


class _Uses(NamedTuple):
    """Recorded uses that are judged alike, with the moment of the last."""

    lease: LeasedConnection
    scopes: tuple[str, ...]
    request: str | None
    uses: int
    last_at: datetime


class _Recorded(NamedTuple):
    uses: list[_Uses]
    complete: bool


async def _recorded_uses(
    tx: Transaction, app: App, leased: Sequence[LeasedConnection], since: datetime
) -> _Recorded:
    """The app's newest uses of the connections that it leased last."""
    window = audit.Window(since, actions=LEASE_ACTIONS)
    alike: dict[tuple[object, ...], _Uses] = {}
    room, complete = _MOST_READ, len(leased) <= _MOST_READ_CONNECTIONS
    for lease in leased[:_MOST_READ_CONNECTIONS]:
        most = min(room, _MOST_READ_OF_ONE)
        records = await audit.page(
            tx, app.tenant, window=window, object=lease.id, limit=most + 1, newest_first=True
        )
        for record in records[:most]:
            if record.detail.get("app") == app.id:
                _add(alike, lease, record)
        complete, room = complete and len(records) <= most, room - min(len(records), most)
        if not room:
            return _Recorded([*alike.values()], complete=complete and lease is leased[-1])
    return _Recorded([*alike.values()], complete)


def _add(alike: dict[tuple[object, ...], _Uses], lease: LeasedConnection, record: AuditRecord) -> None:
    scopes = tuple(record.detail.get("scopes") or lease.scopes)
    request = record.detail.get("request")
    key = (lease.id, scopes, request)
    known = alike.get(key)
    alike[key] = (
        _Uses(lease, scopes, request, 1, record.at) if known is None else known._replace(uses=known.uses + 1)
    )


def _judged_uses(judges: _Judges, recorded: _Recorded, *, complete: bool) -> SimulatedUses:
    lost: list[LostUse] = []
    for group in recorded.uses:
        lease, line = group.lease, group.request
        action = Action.TOKEN if line is None else Action.PROXY
        request = None if line is None else ProxiedRequest.of_line(line)
        refusal = judges.refusal(lease, action, group.scopes, request)
        if refusal is not None:
            lost.append(
                LostUse(
                    connection_id=lease.id,
                    integration=lease.integration,
                    subject=lease.subject,
                    action=action,
                    request=line,
                    uses=group.uses,
                    last_at=group.last_at,
                    reason=refusal.reason,
                    permit=refusal.permit_name,
                )
            )
    lost.sort(key=lambda use: use.uses, reverse=True)
    return SimulatedUses(
        judged=sum(group.uses for group in recorded.uses),
        complete=complete,
        lost=sum(use.uses for use in lost),
        would_lose=tuple(lost[:_MOST_SHOWN]),
    )
