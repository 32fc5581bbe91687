"""Which connections an incident is about, and which are told in a turn: on each of the databases."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text

from activities.incidents.rows import Rows, Waves
from activities.incidents.selecting import Selection
from evergrant_server import audit
from evergrant_server.access import leavers
from evergrant_server.access.incidents import Scope, open_incident
from evergrant_server.access.leavers import LeaverOrder
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.incidents import Incident, IncidentKind, IncidentState, ItemStep
from evergrant_server.core.ids import AppId, IncidentId, new_id
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.incidents import IncidentCall
from evergrant_server.core.people.leavers import NamedPerson
from evergrant_server.store import Store, Transaction
from evergrant_server.store.access import LeaseUseRow
from evergrant_server.store.database.rows import insert
from tests.conformance.store.samples import ACME, a_connection, added
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.patience import eventually
from tests.fakes.rows import put_app

ADMIN = RequestContext(by="app:admin")
HOUR = timedelta(hours=1)
_WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")


async def active(store: Store, subject: str, **changes: Any) -> Connection:
    return await added(store, a_connection(subject=subject, state=LifecycleState.ACTIVE, **changes))


async def leased(store: Store, connection: Connection, app: str, at: datetime, times: int = 1) -> None:
    """Records of leases by this app, and when it leased last."""
    detail: dict[str, object] = {"app": app, "generation": 1}
    facts: dict[str, Any] = {"tenant": ACME, "object": connection.id, "context": ADMIN, "detail": detail}
    entries = [AuditEntry(at=at, action=AuditAction.LEASE_ISSUED, **facts) for _ in range(times)]
    use = {"tenant": ACME, "app_id": app, "connection_id": connection.id, "used_at": at, "revision": 1}
    async with store.write() as tx:
        await audit.append_all(tx, entries)
        await insert(tx.connection, LeaseUseRow, use)


async def selected(store: Store, clock: SetClock, **scope: Any) -> tuple[Incident, set[str]]:
    """The incident once its connections are listed, and their ids; its first page is read by two workers."""
    names = {"integration": None, "app": None, "since": None, "until": None, **scope}
    async with store.write() as tx:
        order = Scope(ACME, IncidentKind.BREACH, **names)
        incident = await open_incident(tx, order, "INC-9", HOUR, ADMIN, clock.now())
    rows = rows_of(store, clock, incident)
    await Selection(rows, 2).advance(incident)
    for _ in range(20):
        incident = await Selection(rows, 2).advance(incident)
        if incident.state is not IncidentState.SELECTING:
            break
    async with store.read() as tx:
        page = await tx.incident_items.page(incident, None, 100)
    assert incident.selected == len(page)
    return incident, {connection.item.connection_id for connection in page}


def rows_of(store: Store, clock: SetClock, incident: Incident) -> Rows:
    provenance = Provenance(workflow_id="w", run_id="r", event_id=1)
    ids: dict[str, Any] = {"tenant": ACME, "incident_id": IncidentId(incident.id)}
    return Rows(store, clock, IncidentCall(**ids, context=ADMIN, provenance=provenance))


async def test_connections_of_a_tenant_or_an_integration_are_stopped_as_they_are_listed(
    store: Store, clock: SetClock
):
    live = [await active(store, f"user-{number}") for number in range(5)]
    ended = await added(store, a_connection(subject="gone", state=LifecycleState.REVOKED))
    elsewhere = await active(store, "user-9", integration="erp")
    _, ids = await selected(store, clock, integration=live[0].integration)
    assert ids == {connection.id for connection in live}
    async with store.read() as tx:
        for connection in live:
            stopped = await tx.connections.get(ACME, connection.id)
            assert stopped is not None
            assert stopped.state is LifecycleState.REVOKING
            record = await audit.newest_record(tx, ACME, connection.id, AuditAction.REVOCATION_REQUESTED)
            assert record is not None
        kept = await tx.connections.get(ACME, elsewhere.id)
        assert kept is not None
        assert kept.state is LifecycleState.ACTIVE
    _, ids = await selected(store, clock)
    assert elsewhere.id in ids
    assert ended.id not in ids


async def test_connections_that_an_app_has_leased_or_that_were_leased_in_a_time(
    store: Store, clock: SetClock
):
    async with store.write() as tx:
        await put_app(tx, ACME, "report", NOW)
        app = await tx.access.app_by_name(ACME, "report")
    assert app is not None
    before, then, late = [await active(store, f"user-{number}") for number in range(3)]
    by_other = await active(store, "user-4")
    revoked = await added(store, a_connection(subject="user-5", state=LifecycleState.REVOKED))
    await leased(store, before, app.id, NOW - 9 * HOUR)
    await leased(store, then, app.id, NOW - 5 * HOUR, times=600)  # more than a page
    await leased(store, revoked, app.id, NOW - 4 * HOUR)
    await leased(store, by_other, AppId(new_id("app")), NOW - 4 * HOUR)
    await leased(store, late, app.id, NOW - HOUR)
    window = {"since": NOW - 6 * HOUR, "until": NOW - 2 * HOUR}
    _, ids = await selected(store, clock, app="report", **window)
    assert ids == {then.id, revoked.id}
    _, ids = await selected(store, clock, **window)
    assert ids == {then.id, revoked.id, by_other.id}
    _, ids = await selected(store, clock, app="report")
    assert ids == {before.id, then.id, late.id, revoked.id}


async def test_the_most_recently_used_are_told_first_and_a_wave_has_an_end(store: Store, clock: SetClock):
    fleet = [await active(store, f"user-{number}") for number in range(4)]
    for hours, connection in enumerate(fleet[:3]):
        await leased(store, connection, AppId(new_id("app")), NOW - hours * HOUR)
    incident, _ = await selected(store, clock)
    rows = rows_of(store, clock, incident)
    waves = Waves(rows, 2, timedelta(minutes=1))
    async with store.write() as tx:
        turns = await waves.next(tx, incident, ItemStep.LISTED)
        assert [item.connection_id for item in turns] == [fleet[0].id, fleet[1].id]
        for item in turns:
            told = item.__replace__(step=ItemStep.TOLD, told_at=clock.now())
            await tx.incident_items.replace(told, expected=item.revision)
    async with store.read() as tx:
        assert await waves.next(tx, incident, ItemStep.LISTED) == []
        assert await tx.incident_items.waits(ACME, fleet[2].id)
        assert not await tx.incident_items.waits(ACME, fleet[0].id)
    clock.advance(61)
    async with store.read() as tx:
        turns = await waves.next(tx, incident, ItemStep.LISTED)
    assert [item.connection_id for item in turns] == [fleet[2].id, fleet[3].id], "never leased: last"


async def leaves(store: Store, subject: str) -> Incident:
    order = LeaverOrder(
        tenant=ACME,
        person=NamedPerson(subject=subject),
        reason="HR-7",
        grace=24 * HOUR,
        wait=HOUR,
        sponsor=None,
        context=ADMIN,
        at=NOW,
    )
    async with store.write() as tx:
        return await leavers.begin(tx, order)


async def has_begun_or_waits(beginning: asyncio.Task[Incident], tx: Transaction) -> bool:
    waiting = (await tx.connection.execute(_WAITING)).scalar_one()
    return beginning.done() or waiting > 0


async def test_a_connection_that_is_being_made_when_its_person_leaves_is_held(store: Store):
    connection = a_connection()
    async with store.write() as tx:
        assert not await tx.leavers.is_leaving(ACME, connection.integration, connection.subject)
        beginning = asyncio.create_task(leaves(store, connection.subject))
        if tx.connection.dialect.name == "postgresql":
            await eventually(lambda: has_begun_or_waits(beginning, tx), bool)
        await tx.connections.add(connection)
    incident = await beginning
    assert incident.selected == 1
    async with store.write() as tx:
        made = await tx.connections.get(ACME, connection.id)
        assert made is not None
        assert made.held_by == incident.id
        assert await tx.leavers.is_leaving(ACME, connection.integration, connection.subject)
