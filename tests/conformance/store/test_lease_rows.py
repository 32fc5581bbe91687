"""The lease path's row, and the small repositories."""

from datetime import timedelta

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.export import Export, ExportFilters, ExportStatus
from evergrant_server.core.ids import ConnectionId, ExportId, Tenant, new_id
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import HistoryExport, LeaseRows, Store
from evergrant_server.store.connections.tables import ProofKeyRow
from evergrant_server.store.idempotency import IdempotencyRow
from tests.conformance.store.samples import (
    ACME,
    a_connection,
    a_grant,
    added,
    granted,
    refreshed,
    some_tokens,
)
from tests.conformance.store.test_grants import columns_of
from tests.fakes.databases import NOW
from tests.fakes.failures import fails


async def test_one_query_has_all_a_lease_needs(store: Store, key_path: str):
    connection = await granted(store)
    row = await LeaseRows(store).load(ACME, connection.id)
    assert row is not None
    assert row == await LeaseRows(store).load_by_names(ACME, "github", "user-1", "default")
    assert (row.state, row.connection_revision, row.generation) == (LifecycleState.ACTIVE, 2, 1)
    assert row.grant == a_grant(1)
    assert row.open_access_token(KeyRing.open(key_path, Role.API)).reveal() == "at-1"
    assert "EVS" not in repr(row)
    assert "at-1" not in repr(row)


async def test_positions_of_many_connections_are_one_query(store: Store):
    connection = await granted(store)
    gone = ConnectionId("con_gone")
    rows = LeaseRows(store)
    assert await rows.positions([connection.id, gone, gone]) == {
        (ACME, connection.id): (LifecycleState.ACTIVE, 1)
    }
    await refreshed(store, connection, some_tokens("at-2", "rt-2"))
    assert (await rows.positions([connection.id]))[ACME, connection.id].generation == 2
    assert await rows.positions([]) == {}


async def test_an_unknown_or_foreign_connection_has_no_row(store: Store):
    connection = await granted(store)
    rows = LeaseRows(store)
    assert await rows.load(ACME, ConnectionId("con_none")) is None
    assert await rows.load(Tenant("other"), connection.id) is None
    assert await rows.load_by_names(Tenant("other"), "github", "user-1") is None
    assert await rows.load_by_names(ACME, "github", "user-2") is None


async def test_a_pending_connection_has_a_row_without_a_token(store: Store):
    connection = await added(store, a_connection())
    row = await LeaseRows(store).load(ACME, connection.id)
    assert row is not None
    assert row.grant is None
    with fails(ErrorCode.CONSENT_REQUIRED):
        row.open_access_token(store.ring)


async def test_names_find_the_live_connection_before_a_newer_ended_one(store: Store):
    ended = await added(store, a_connection(created_at=NOW + timedelta(hours=1)))
    async with store.write() as tx:
        await tx.connections.replace(ended.consent_denied(NOW), expected=1)
    rows = LeaseRows(store)
    row = await rows.load_by_names(ACME, "github", "user-1")
    assert row is not None
    assert (row.connection_id, row.reason) == (ended.id, ErrorCode.CONSENT_DENIED)
    live = await granted(store)
    row = await rows.load_by_names(ACME, "github", "user-1")
    assert row is not None
    assert row.connection_id == live.id


async def test_a_cached_row_keeps_opening_its_own_generation(store: Store):
    connection = await granted(store)
    cached = await LeaseRows(store).load(ACME, connection.id)
    await refreshed(store, connection, some_tokens("at-2", "rt-2"))
    assert cached is not None
    assert cached.open_access_token(store.ring).reveal() == "at-1"


async def test_an_answer_is_remembered_sealed_and_once(store: Store):
    app = new_id("app")
    async with store.write() as tx:
        await tx.idempotency.store(ACME, app, "k", "hash-1", 201, '{"connect_url":"link-canary"}', NOW)  # type: ignore[arg-type]  # ids are strings
    async with store.read() as tx:
        found = await tx.idempotency.find(ACME, app, "k")  # type: ignore[arg-type]  # ids are strings
        raw = (await tx.connection.execute(IdempotencyRow.__table__.select())).mappings().one()  # type: ignore[attr-defined]  # SQLModel adds it
        assert await tx.idempotency.find(ACME, app, "other") is None  # type: ignore[arg-type]  # ids are strings
        assert await tx.idempotency.find(Tenant("other"), app, "k") is None  # type: ignore[arg-type]  # ids are strings
    assert found is not None
    assert (found.request_hash, found.status) == ("hash-1", 201)
    assert found.body == '{"connect_url":"link-canary"}'
    assert "link-canary" not in repr(found)
    assert b"link-canary" not in bytes(raw["sealed_body"])
    for request_hash, code in (
        ("hash-1", ErrorCode.STORE_CONFLICT),
        ("hash-2", ErrorCode.IDEMPOTENCY_CONFLICT),
    ):
        with fails(code):
            async with store.write() as tx:
                await tx.idempotency.store(ACME, app, "k", request_hash, 201, "{}", NOW)  # type: ignore[arg-type]  # ids are strings
    async with store.write() as tx:
        assert await tx.idempotency.prune(NOW) == 0
        assert await tx.idempotency.prune(NOW + timedelta(seconds=1), limit=0) == 0
        assert await tx.idempotency.prune(NOW + timedelta(seconds=1)) == 1


def an_export(connection_id: ConnectionId, run_id: str, last_event_id: int, **more: object) -> HistoryExport:
    values = {"closed": False, "exported_at": NOW, "events": [{"id": n} for n in range(last_event_id)]}
    return HistoryExport(
        tenant=ACME,
        connection_id=connection_id,
        workflow_id=f"connection:acme:{connection_id}",
        run_id=run_id,
        last_event_id=last_event_id,
        **{**values, **more},  # type: ignore[arg-type]  # pydantic checks them
    )


async def test_a_longer_export_replaces_a_shorter_one_and_never_the_reverse(store: Store):
    connection = await added(store, a_connection())
    first = an_export(connection.id, "run-1", 3)
    longer = an_export(connection.id, "run-1", 5, closed=True)
    second = an_export(connection.id, "run-2", 2, exported_at=NOW + timedelta(seconds=1))
    async with store.write() as tx:
        for export in (second, first, longer, first, longer):
            await tx.histories.add(export)
    async with store.read() as tx:
        assert await tx.histories.of_connection(ACME, connection.id) == [longer, second]
        assert await tx.histories.of_connection(Tenant("other"), connection.id) == []


async def test_a_key_is_made_once_and_outlives_refreshes(store: Store):
    connection = await granted(store)
    async with store.read() as tx:
        assert await tx.proof_keys.get(ACME, connection.id) is None
    async with store.write() as tx:
        made = await tx.proof_keys.get_or_create(ACME, connection.id, NOW)
    await refreshed(store, connection, some_tokens("at-2", "rt-2"))
    async with store.write() as tx:
        assert await tx.proof_keys.get_or_create(ACME, connection.id, NOW) == made
    row = await columns_of(store, ProofKeyRow, connection_id=connection.id)
    assert row["thumbprint"] == made.thumbprint
    assert made.private.reveal().encode() not in row["sealed_key"]


async def test_an_export_is_written_by_pages_and_one_page_once(store: Store):
    export = Export(
        tenant=ACME,
        id=ExportId(new_id("exp")),
        recipient={"kty": "OKP"},
        filters=ExportFilters(integration="crm"),
        by="app:admin",
        trace_id="",
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
    )
    async with store.write() as tx:
        await tx.exports.add(export)
        first = await tx.exports.write_page(export, export.page_sealed(2, 1, "con_b"), ["one", "two"])
    with fails(ErrorCode.STORE_CONFLICT):
        async with store.write() as tx:
            await tx.exports.write_page(export, export.page_sealed(2, 1, "con_b"), ["one", "two"])
    async with store.write() as tx:
        await tx.exports.write_page(first, first.page_sealed(1, 0, None), ["three"])
    async with store.read() as tx:
        whole = await tx.exports.get(ACME, export.id)
        assert whole is not None
        assert (whole.status, whole.exported, whole.skipped, whole.pages) == (ExportStatus.READY, 3, 1, 2)
        assert await tx.exports.lines(whole, 0, 2) == ["one", "two"]
        assert await tx.exports.lines(whole, 2, 2) == ["three"]
    async with store.write() as tx:
        gone = await tx.exports.delete_lines(whole)
        assert await tx.exports.lines(gone, 0, 10) == []
    assert gone.status is ExportStatus.GONE
