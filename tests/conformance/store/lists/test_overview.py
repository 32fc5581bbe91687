"""What the overview counts, on each of the databases."""

from datetime import datetime, timedelta
from typing import Any

from evergrant_server import audit
from evergrant_server.audit.filing import file_leases
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import FollowUp, Origin
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store
from evergrant_server.store.questions.overview import ComingEnd
from tests.conformance.store.samples import (
    ACME,
    a_connection,
    a_grant,
    a_key,
    a_permit,
    added,
    an_app_of,
    granted,
    some_tokens,
)
from tests.fakes.databases import NOW

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
STATES = LifecycleState


async def put(store: Store, subject: str, state: STATES = STATES.ACTIVE, **changes: Any) -> None:
    await added(store, a_connection(subject=subject, state=state, **changes))


async def failing(store: Store, subject: str, hours: int, **changes: Any) -> None:
    at = NOW - hours * HOUR
    failed = {"failures": 1, "last_failure": ErrorCode.CLIENT_REJECTED, "last_failed_at": at}
    await put(store, subject, **{**failed, **changes})


async def test_what_needs_somebody_is_grouped_by_integration_state_and_cause(store: Store):
    await failing(store, "a", 1)
    await failing(store, "b", 3)
    await failing(store, "c", 2, integration="mail")
    await put(store, "d", STATES.NEEDS_REAUTH, reason=ErrorCode.GRANT_REJECTED)
    await put(store, "e", STATES.PENDING_CONSENT)
    await put(store, "f", follow_up=FollowUp.CHOOSING)
    await put(store, "well")
    await put(store, "elsewhere", STATES.NEEDS_REAUTH, tenant="other")
    async with store.read() as tx:
        groups, complete = await tx.overviews.attention(ACME)
        assert not (await tx.overviews.attention(ACME, most=2))[1]
        judged, _ = await tx.overviews.attention_for(ACME, lambda _i, _p, subject, _id: subject in "ad")
        assert await tx.overviews.attention(Tenant("nobody")) == ([], True)
    assert complete
    shown = {(group.integration, group.state, group.code): group.connections for group in groups}
    assert shown == {
        ("github", STATES.ACTIVE, "client_rejected"): 2,
        ("mail", STATES.ACTIVE, "client_rejected"): 1,
        ("github", STATES.NEEDS_REAUTH, "grant_rejected"): 1,
        ("github", STATES.PENDING_CONSENT, None): 1,
        ("github", STATES.ACTIVE, "choice_required"): 1,
    }
    (rejected,) = [group for group in groups if group.connections == 2]
    assert rejected.since == NOW - 3 * HOUR
    assert sorted((group.state, group.connections) for group in judged) == [
        (STATES.ACTIVE, 1),
        (STATES.NEEDS_REAUTH, 1),
    ]


async def test_live_connections_are_counted_by_integration(store: Store):
    for number in range(3):
        await put(store, f"s{number}")
    await put(store, "m", integration="mail")
    await put(store, "ended", STATES.REVOKED)
    async with store.read() as tx:
        counts, complete = await tx.overviews.live_by_integration(ACME)
        assert not (await tx.overviews.live_by_integration(ACME, most=2))[1]
    assert complete
    assert {(count.integration, count.connections) for count in counts} == {("github", 3), ("mail", 1)}


async def test_what_ends_within_a_month_comes_with_whose_it_is(store: Store):
    app = await an_app_of(store, ends_at=NOW + 9 * DAY, sponsor="app:boss")
    other = await an_app_of(store, tenant="other")
    async with store.write() as tx:
        for owner, days, name in ((app, 3, "soon"), (app, 300, "later"), (other, 3, "elsewhere")):
            ends = {"expires_at": NOW + days * DAY}
            await tx.access.add_key(a_key(owner, **ends))
            await tx.access.put_permit(a_permit(owner, name=name, **ends), expected=None)
    await granted(store, subject="never ends")
    for subject, changes in (
        ("a", {"refresh_expires_at": NOW + 5 * DAY}),
        ("b", {"refresh_expires_at": NOW + 4 * DAY}),
        ("c", {"refreshable": False, "expires_at": NOW + 2 * DAY}),
    ):
        connection = await added(store, a_connection(subject=subject))
        after = connection.granted(NOW)
        grant = a_grant(after.generation, **changes)
        async with store.write() as tx:
            await tx.grants.install(after, some_tokens(), grant, origin=Origin.NEW, expected=1)
    async with store.read() as tx:
        ends = await tx.overviews.ends(ACME, NOW, 30 * DAY)
    shown = [(end.kind, end.owner, end.at, end.connections) for end in ends]
    assert shown == [
        ("access_token", "github", NOW + 2 * DAY, 1),
        ("key", app.name, NOW + 3 * DAY, 0),
        ("permit", app.name, NOW + 3 * DAY, 0),
        ("refresh_token", "github", NOW + 4 * DAY, 2),
        ("agent", app.name, NOW + 9 * DAY, 0),
    ]
    assert [end.name for end in ends if end.kind == "permit"] == ["soon"]
    assert isinstance(ends[0], ComingEnd)


async def records(store: Store, at: datetime, action: AuditAction, number: int) -> None:
    facts: dict[str, Any] = {"tenant": ACME, "object": "con_1", "context": RequestContext(by="app:a")}
    async with store.write() as tx:
        await audit.append_all(tx, [AuditEntry(at=at, action=action, **facts) for _ in range(number)])


async def test_leases_and_refreshes_are_counted_by_the_hour_each_once(store: Store):
    hour = NOW.replace(minute=0, second=0, microsecond=0)
    await records(store, hour, AuditAction.LEASE_ISSUED, 3)
    await records(store, hour + HOUR, AuditAction.GRANT_REFRESHED, 2)
    await file_leases(store)
    await records(store, hour + HOUR / 2, AuditAction.LEASE_ISSUED, 4)
    await records(store, hour + HOUR, AuditAction.APP_PUT, 1)
    for _ in range(2):
        await file_leases(store)
    async with store.read() as tx:
        counts = await tx.overviews.hours(ACME, hour)
        assert [*counts] == [
            (hour, AuditAction.LEASE_ISSUED, 7),
            (hour + HOUR, AuditAction.GRANT_REFRESHED, 2),
        ]
        assert await tx.overviews.hours(Tenant("other"), hour) == []
    async with store.write() as tx:
        assert await tx.overviews.prune_hours(hour + HOUR) == 1
        assert len(await tx.overviews.hours(ACME, hour)) == 1


async def test_keys_and_the_archive_are_what_is_known(store: Store):
    await granted(store)
    async with store.read() as tx:
        keys = await tx.overviews.keys(ACME)
        assert {(age.purpose, age.service) for age in keys} >= {("lease", None), ("refresh", None)}
        assert {age.at for age in keys} == {NOW}
        assert await tx.overviews.archived_at() is None
        assert await tx.overviews.decisions(ACME, NOW) == []
