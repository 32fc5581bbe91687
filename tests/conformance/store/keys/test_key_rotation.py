"""Keys are replaced while others read and write: every value opens at every instant, no answer is lost."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, update

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.grant import Origin
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.key_rotation import RotationCommand, RotationKind, RotationStep
from evergrant_server.core.messages.base import CLAIMED, RequestContext
from evergrant_server.core.messages.keys import KeyRotationProgress
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.crypto import AssociatedData, KeyPurpose, Sealed, seal
from evergrant_server.store import LeaseRows, Store
from evergrant_server.store.connections.grants import ACCESS_COLUMN
from evergrant_server.store.connections.tables import ConnectionGrantRow
from evergrant_server.store.database.columns import (
    sealed_columns,
    table_of,
)
from tests.conformance.store.keys.sealed_rows import add_row
from tests.conformance.store.samples import ACME, a_grant, an_attempt, granted, some_tokens
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.key_rotations import KINDS, a_rotation, advanced, key_rows, one_page, rotated
from tests.fakes.patience import eventually

OTHER = Tenant("other")


async def test_another_tenant_keeps_its_keys(store: Store):
    await granted(store)
    table = table_of(ConnectionGrantRow)
    await add_row(store, table, sealed_columns()[table], tenant=OTHER)
    before = await key_rows(store, tenant=OTHER)
    for kind in KINDS:
        await rotated(store, a_rotation(kind))
    assert await key_rows(store, tenant=OTHER) == before


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rotation_that_is_repeated_makes_no_second_key(store: Store, kind: RotationKind):
    """As after a SIGKILL at any place, and as when somebody sends its first message again."""
    await granted(store)
    call = a_rotation(kind)
    await rotated(store, call)
    before = {row["id"] for row in await key_rows(store)}
    progress = await rotated(store, call)
    assert {row["id"] for row in await key_rows(store)} == before
    assert progress.replaced == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_every_lease_opens_after_every_page_from_rows_and_from_caches(store: Store, kind: RotationKind):
    connections = [await granted(store, subject=f"user-{number}") for number in range(6)]
    loader = LeaseRows(store)
    cached = [await loader.load(ACME, connection.id) for connection in connections]
    ready = [row.ready_token(store.ring) for row in cached if row is not None]
    call, progress = a_rotation(kind), KeyRotationProgress()
    pages = 0
    while not progress.done:
        progress = await one_page(store, call.__replace__(progress=progress))
        pages += 1
        for connection, row, token in zip(connections, cached, ready, strict=True):
            now = await loader.load(ACME, connection.id)
            assert now is not None
            assert now.open_access_token(store.ring).reveal() == "at-1"
            assert row is not None
            assert row.open_access_token(store.ring).reveal() == "at-1"
            assert token.open() == b"at-1"
            async with store.read() as tx:
                refresh = await tx.grants.refresh_token(connection)
            assert refresh is not None
            assert refresh.reveal() == "rt-1"
    assert pages > 5
    assert progress.left == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reader_reads_in_its_snapshot_what_was_sealed_before(store: Store, kind: RotationKind):
    """On PostgreSQL nothing is destroyed before the reader has ended."""
    connection = await granted(store)
    async with store.read() as tx:
        assert await tx.grants.get(ACME, connection.id) is not None
        task = asyncio.create_task(rotated(store, a_rotation(kind)))
        await eventually(lambda: is_replaced(store, task))
        assert (await tx.grants.access_token(connection)).reveal() == "at-1"
        if not store.is_sqlite:
            assert not task.done()
            assert any(row["retired_at"] for row in await key_rows(store))
        else:
            await task
            assert (await tx.grants.access_token(connection)).reveal() == "at-1"
    assert (await task).destroyed


async def is_replaced(store: Store, task: "asyncio.Task[Any]") -> bool:
    return task.done() or any(row["retired_at"] for row in await key_rows(store))


async def test_what_seals_with_a_replaced_key_that_it_holds_takes_the_current_one(store: Store):
    """The answer of a refresh that began before a rotation: its row and its key are of one kind."""
    connection = await granted(store)
    held = await store.unwrap_keys(ACME, connection.id, (KeyPurpose.LEASE, KeyPurpose.REFRESH))
    attempt = an_attempt(connection)
    async with store.write() as tx:
        held = await tx.sealer.current_keys(ACME, held)
        await tx.attempts.open(attempt)
    key = held.current(KeyPurpose.REFRESH)
    place = AssociatedData(ACME, "journal", attempt.id, "reply", 1)
    journaled = seal(key, place, b"the answer")
    progress = await rotated(store, a_rotation(RotationKind.CONNECTION), RotationStep.DESTROY)
    progress = await rotated(store, a_rotation(RotationKind.CONNECTION, progress=progress))
    assert (progress.kept, progress.done) == (1, False), "the journal may hold what the old key has sealed"
    async with store.read() as tx:
        assert (
            await tx.sealer.open_bytes(KeyPurpose.REFRESH, connection.id, place, journaled) == b"the answer"
        )
    after = connection.granted(NOW)
    async with store.write(held) as tx:
        await tx.grants.install(
            after,
            some_tokens("at-2", "rt-2"),
            a_grant(after.generation),
            origin=Origin.REFRESH,
            expected=connection.revision,
        )
        await tx.attempts.close(attempt, AttemptOutcome.INSTALLED, NOW)
    row = await LeaseRows(store).load(ACME, connection.id)
    assert row is not None
    assert row.open_access_token(store.ring).reveal() == "at-2"
    done = await rotated(store, a_rotation(RotationKind.CONNECTION, command=RotationCommand.RETIRE))
    assert (done.destroyed, done.kept) == (1, 0)


async def test_an_intent_is_committed_with_the_current_keys_alone(store: Store):
    """Keys that were unwrapped before a whole rotation are gone; with them an answer would be lost."""
    connection = await granted(store)
    purposes = (KeyPurpose.LEASE, KeyPurpose.REFRESH)
    held = await store.unwrap_keys(ACME, connection.id, purposes)
    await rotated(store, a_rotation(RotationKind.CONNECTION))
    async with store.write() as tx:
        current = await tx.sealer.current_keys(ACME, held)
    ids = {row["id"] for row in await key_rows(store, connection_id=connection.id)}
    assert {key.id for _, key in current.items()} == ids
    assert not {key.id for _, key in held.items()} & ids


@pytest.mark.parametrize(
    ("outcome", "kept"),
    [
        (None, True),
        (AttemptOutcome.UNREAD, True),
        (AttemptOutcome.SUPERSEDED, True),
        (AttemptOutcome.GIVEN_UP, True),
        (AttemptOutcome.INSTALLED, False),
        (AttemptOutcome.REFUSED, False),
        (AttemptOutcome.NOT_SENT, False),
    ],
)
async def test_a_key_is_kept_while_a_reply_may_lie_in_a_journal(
    store: Store, outcome: AttemptOutcome | None, kept: bool
):
    connection = await granted(store)
    attempt = an_attempt(connection)
    async with store.write() as tx:
        await tx.attempts.open(attempt)
        if outcome is not None:
            await tx.attempts.close(attempt, outcome, NOW)
    progress = await rotated(store, a_rotation(RotationKind.CONNECTION))
    assert (progress.done, progress.kept) == (not kept, int(kept))


async def test_the_last_reply_of_a_host_that_is_gone_holds_a_key_for_a_week(store: Store, clock: SetClock):
    connection = await granted(store)
    attempt = an_attempt(connection)
    async with store.write() as tx:
        await tx.attempts.open(attempt)
        await tx.attempts.close(attempt, AttemptOutcome.SUPERSEDED, NOW)
    await rotated(store, a_rotation(RotationKind.CONNECTION), RotationStep.DESTROY)
    clock.advance(8 * 86_400)
    retire = a_rotation(RotationKind.CONNECTION, command=RotationCommand.RETIRE)
    assert (await rotated(store, retire)).kept == 0


async def test_a_key_under_which_another_transaction_seals_waits_for_the_next_pass(store: Store):
    if store.is_sqlite:
        pytest.skip("its writers come one after another")
    connection = await granted(store)
    call = a_rotation(RotationKind.CONNECTION)
    async with store.write() as tx:
        place = AssociatedData(ACME, "nowhere", connection.id, "nothing")
        await tx.sealer.seal(KeyPurpose.LEASE, connection.id, place, Secret("held"))
        progress = await one_page(
            store, call.__replace__(progress=KeyRotationProgress(step=RotationStep.REPLACE))
        )
        assert (progress.skipped, progress.replaced) == (1, 1)
    assert (await rotated(store, call.__replace__(progress=progress))).replaced == 2


async def test_a_value_that_no_key_opens_is_named_and_holds_nothing_up(
    store: Store, caplog: pytest.LogCaptureFixture
):
    connection = await granted(store)
    grants = table_of(ConnectionGrantRow)
    async with store.write() as tx:
        row = (await tx.connection.execute(select(grants))).mappings().one()
        bent = bytearray(row[ACCESS_COLUMN])
        bent[-1] ^= 1
        await tx.connection.execute(update(grants).values({ACCESS_COLUMN: Sealed(bent)}))
    progress = await rotated(store, a_rotation(RotationKind.CONNECTION))
    assert (progress.broken, progress.kept, progress.destroyed) == (1, 0, 2)
    assert f"connection_grant {connection.id}/main, column sealed_access" in caplog.text
    progress = await rotated(store, a_rotation(RotationKind.TENANT))
    assert progress.destroyed == 2
    async with store.read() as tx:
        refresh = await tx.grants.refresh_token(connection)
    assert refresh is not None
    assert refresh.reveal() == "rt-1"


async def test_nobody_rotates_who_only_writes_to_temporals_namespace(store: Store):
    await granted(store)
    call = a_rotation(RotationKind.TENANT, context=RequestContext(by=f"{CLAIMED}app:admin"))
    with pytest.raises(Failure) as caught:
        await advanced(store, call)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


async def test_a_worker_moves_all_pages_in_one_try_and_says_how_far_it_is(store: Store):
    for number in range(6):
        await granted(store, subject=f"user-{number}")
    progress = await advanced(store, a_rotation(RotationKind.TENANT))
    assert (progress.done, progress.total, progress.moved, progress.replaced) == (True, 12, 12, 2)
    async with store.read() as tx:
        records = await audit.page(tx, ACME)
    assert [(record.action, record.detail["moved"]) for record in records] == [(AuditAction.KEYS_ROTATED, 12)]


async def test_keys_of_connections_that_are_shredded_meanwhile_stay_gone(store: Store):
    connection = await granted(store)
    progress = await rotated(store, a_rotation(RotationKind.CONNECTION), RotationStep.DESTROY)
    async with store.write() as tx:
        assert await tx.grants.shred(ACME, connection.id) == 4, "the old ones as well"
    await rotated(store, a_rotation(RotationKind.CONNECTION, progress=progress))
    assert await key_rows(store, connection_id=connection.id) == []
