"""The lease path's row, and the small repositories."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import MOST_NARROWED, Grant, Origin, narrowed_slot
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.export import Export, ExportFilters, ExportStatus
from evergrant_server.core.ids import ConnectionId, ExportId, Tenant, new_id
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import HistoryExport, LeaseRow, LeaseRows, Store
from evergrant_server.store.connections.tables import ConnectionGrantRow, ProofKeyRow
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
        assert await tx.idempotency.prune(NOW, now=NOW) == 0
        assert await tx.idempotency.prune(NOW + timedelta(seconds=1), limit=0, now=NOW) == 0
        assert await tx.idempotency.prune(NOW + timedelta(seconds=1), now=NOW) == 1


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


# --- narrower tokens: in a slot for their set of scopes, few of them, gone with the main token


async def narrowed(store: Store, connection: Connection, *scopes: str, hours: int = 1) -> Connection:
    """What a refresh for a narrower token writes."""
    after = connection.refreshed(NOW)
    reply = a_grant(after.generation, scopes=scopes, expires_at=NOW + timedelta(hours=hours))
    async with store.write() as tx:
        before = await tx.grants.get(ACME, connection.id)
        assert before is not None
        kept = reply.keeping_access_token(before)
        saved = await tx.grants.install(
            after, some_tokens("unused", "rt-2"), kept, origin=Origin.REFRESH, expected=connection.revision
        )
        await tx.narrowed_tokens.put(
            saved, reply.narrowed(scopes, None), Secret(f"at-{'-'.join(scopes)}"), NOW
        )
    return saved


async def held(store: Store, connection: Connection, *scopes: str) -> LeaseRow:
    row = await LeaseRows(store).load_narrowed(ACME, connection.id, narrowed_slot(scopes))
    assert row is not None
    return row


async def main_grant(store: Store, connection: Connection) -> Grant:
    async with store.read() as tx:
        found = await tx.grants.get(ACME, connection.id)
    assert found is not None
    return found


async def test_it_stands_beside_the_main_token_whose_refresh_token_is_replaced(store: Store, key_path: str):
    connection = await narrowed(store, await granted(store), "repo", "user", hours=2)
    ring = KeyRing.open(key_path, Role.API)
    row = await held(store, connection, "user", "repo")  # in any order
    assert row.open_access_token(ring).reveal() == "at-repo-user"
    assert (row.generation, row.connection_revision) == (connection.generation, connection.revision)
    main = await LeaseRows(store).load(ACME, connection.id)
    assert main is not None
    assert main.open_access_token(ring).reveal() == "at-1"
    grant = await main_grant(store, connection)
    assert (grant.scopes, grant.expires_at) == (("repo",), NOW + timedelta(hours=1))
    assert (grant.generation, grant.token_generation) == (2, 1)
    async with store.read() as tx:
        kept = await tx.grants.refresh_token(connection)
    assert kept is not None
    assert kept.reveal() == "rt-2"
    assert (await held(store, connection, "user")).grant is None


@pytest.mark.parametrize("origin", list(Origin))
async def test_it_ends_with_the_main_token(store: Store, origin: Origin):
    connection = await narrowed(store, await granted(store), "repo")
    connection = await refreshed(store, connection, some_tokens("at-3"), origin)
    assert (await held(store, connection, "repo")).grant is None
    assert (await main_grant(store, connection)).token_generation == 3


async def test_one_that_was_put_back_from_before_the_main_token_is_not_served(store: Store):
    """By a database writer: it may be another account's."""
    connection = await narrowed(store, await granted(store), "repo")
    connection = await refreshed(store, connection, some_tokens("at-3"), Origin.NEW)
    connection = await narrowed(store, connection, "repo")
    async with store.write() as tx:
        mine = update(ConnectionGrantRow).filter_by(slot=narrowed_slot(("repo",)))
        await tx.connection.execute(mine.values(generation=2))
    assert (await held(store, connection, "repo")).grant is None


async def test_a_token_in_another_slot_is_refused(store: Store):
    connection = await narrowed(store, await granted(store), "repo")
    async with store.write() as tx:
        moved = update(ConnectionGrantRow).filter_by(slot=narrowed_slot(("repo",)))
        await tx.connection.execute(moved.values(slot=narrowed_slot(("user",))))
    with fails(ErrorCode.AUTHORITY_BROKEN, "connection_grant"):
        await held(store, connection, "user")


async def test_there_are_so_many_at_a_time_and_the_oldest_goes(store: Store):
    connection, names = await granted(store), [f"s{number}" for number in range(MOST_NARROWED + 1)]
    slot = narrowed_slot((names[-1],))
    for name in names[:-1]:
        async with store.read() as tx:
            assert await tx.narrowed_tokens.full_until(ACME, connection.id, slot, NOW) is None
        connection = await narrowed(store, connection, name)
    async with store.read() as tx:
        full, now = tx.narrowed_tokens.full_until, NOW + timedelta(hours=1)
        assert await full(ACME, connection.id, slot, NOW) == now
        assert await full(ACME, connection.id, narrowed_slot((names[0],)), NOW) is None
        assert await full(ACME, connection.id, slot, now) is None
    connection = await narrowed(store, connection, names[-1])
    there = [name for name in names if (await held(store, connection, name)).grant is not None]
    assert there == names[1:]


async def test_it_is_shredded_with_its_connection(store: Store):
    connection = await narrowed(store, await granted(store), "repo")
    async with store.write() as tx:
        await tx.grants.shred(ACME, connection.id)
    assert (await held(store, connection, "repo")).sealed_access is None
