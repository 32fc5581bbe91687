"""The outbox: in order per target, and no message in two relays' hands."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import BULK, OutboxKind, OutboxMessage
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.authority.scan import accept, broken_configuration
from evergrant_server.store.database.rows import column_values, insert
from evergrant_server.store.outbox import Outbox, OutboxRow
from tests.conformance.store.samples import a_message
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S

HOLD = timedelta(seconds=30)


async def put(store: Store, *messages: OutboxMessage) -> None:
    async with store.write() as tx:
        for message in messages:
            await tx.outbox.add(message)


async def claim(store: Store, by: str = "relay", after: float = 0, limit: int = 50) -> list[str]:
    async with store.write() as tx:
        claimed = await tx.outbox.claim(by, NOW + timedelta(seconds=after), HOLD, limit)
    return [it.id for it in claimed]


async def test_messages_of_one_target_come_one_after_the_other(store: Store):
    one, two, three = (a_message("a", name=name) for name in ("1", "2", "3"))
    await put(store, one, two, three)
    for message in (one, two, three):
        assert await claim(store) == [message.id]
        assert await claim(store) == []
        async with store.write() as tx:
            await tx.outbox.mark_delivered([message.id], NOW)
    assert await claim(store) == []


async def test_targets_do_not_wait_for_each_other(store: Store):
    messages = [a_message(target) for target in ("a", "b", "a", "c")]
    await put(store, *messages)
    assert await claim(store) == [messages[0].id, messages[1].id, messages[3].id]


async def test_tenants_come_in_turn(store: Store):
    greedy = [a_message(f"target-{n}") for n in range(30)]
    others = [a_message(f"{tenant}-{n}", tenant=Tenant(tenant)) for tenant in ("b", "c") for n in range(3)]
    await put(store, *greedy, *others)
    assert set(await claim(store, limit=9)) == {it.id for it in [*greedy[:3], *others]}
    assert await claim(store, limit=9) == [it.id for it in greedy[3:12]]


async def test_bulk_waits_for_everything_else_and_its_tenants_come_in_turn(store: Store):
    """An import of thousands holds up no revocation, neither of its own tenant nor of another."""
    bulk = [a_message(f"bulk-{n}", name=BULK) for n in range(6)]
    theirs = a_message("theirs", name=BULK, tenant=Tenant("b"))
    others = [a_message("a"), a_message("b", tenant=Tenant("b"))]
    await put(store, *bulk, theirs, *others)
    assert set(await claim(store, limit=3)) == {bulk[0].id, *(it.id for it in others)}
    async with store.write() as tx:
        assert await tx.outbox.claim("api", NOW, HOLD, bulk=False) == []
    assert set(await claim(store, limit=2)) == {theirs.id, bulk[1].id}


async def test_a_claimed_message_comes_back_after_the_hold(store: Store):
    message = a_message()
    await put(store, message)
    assert await claim(store, "dead") == [message.id]
    assert await claim(store, after=29) == []
    assert await claim(store, after=30) == [message.id]


async def test_a_postponed_message_waits_and_so_do_those_behind_it(store: Store):
    one, two, other = a_message("a"), a_message("a"), a_message("b")
    await put(store, one, two, other)
    assert len(await claim(store)) == 2
    async with store.write() as tx:
        await tx.outbox.postpone(one.id, "temporal_unavailable", NOW + timedelta(seconds=5))
        await tx.outbox.mark_delivered([other.id], NOW)
    assert await claim(store, after=4) == []
    async with store.write() as tx:
        (again,) = await tx.outbox.claim("relay", NOW + timedelta(seconds=5), HOLD)
    assert (again.id, again.attempts, again.last_error) == (one.id, 1, "temporal_unavailable")
    assert again.payload == {"reason": "asked"}


async def test_what_a_clock_that_was_ahead_put_off_or_claimed_is_not_waited_for(store: Store):
    """A relay's host was an hour ahead and was set right, or it died and another host's goes on."""
    hour = 3600.0
    message, behind = a_message("a"), a_message("a")
    await put(store, message, behind)
    assert await claim(store, "ahead", after=hour) == [message.id]
    assert await claim(store) == [message.id], "nobody holds a message for an hour"
    async with store.write() as tx:
        longest = timedelta(seconds=hour, minutes=5)
        await tx.outbox.postpone(message.id, "temporal_unavailable", NOW + longest)
    assert await claim(store) == [message.id]
    async with store.write() as tx:
        await tx.outbox.postpone(message.id, "temporal_unavailable", NOW + timedelta(minutes=5))
    assert await claim(store) == [], "the longest that a relay puts one off"


async def test_many_relays_never_share_a_message(store: Store):
    messages = [a_message(f"target-{n % 10}") for n in range(40)]
    await put(store, *messages)
    delivered: list[tuple[str, str]] = []

    async def relay(name: str) -> None:
        while len(delivered) < len(messages):
            async with store.write() as tx:
                claimed = await tx.outbox.claim(name, NOW, HOLD, 3)
            for message in claimed:
                delivered.append((message.target, message.id))
                async with store.write() as tx:
                    await tx.outbox.mark_delivered([message.id], NOW)

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(relay(f"relay-{n}") for n in range(4)))
    assert len(delivered) == len(set(delivered)) == len(messages)
    for target in {it.target for it in messages}:
        in_order = [it.id for it in messages if it.target == target]
        assert [id for where, id in delivered if where == target] == in_order


async def test_depth_counts_what_is_not_delivered_and_prune_drops_what_is(store: Store):
    one, two = a_message("a", created_at=NOW - timedelta(minutes=5)), a_message("b")
    await put(store, one, two)
    async with store.write() as tx:
        assert await tx.outbox.depth(NOW) == 2
        assert await tx.outbox.oldest_undelivered_at() == one.created_at
        await tx.outbox.postpone(two.id, "x", NOW + timedelta(hours=1))
        await tx.outbox.mark_delivered([one.id], NOW)
        await tx.outbox.mark_delivered([one.id], NOW)
        assert await tx.outbox.depth(NOW) == 1
        assert await tx.outbox.oldest_undelivered_at() == NOW
        assert await tx.outbox.prune(NOW + timedelta(seconds=1), limit=0, now=NOW) == 0
        assert await tx.outbox.prune(NOW + timedelta(seconds=1), now=NOW) == 1
        assert await tx.outbox.depth(NOW) == 1


async def test_an_unknown_or_doubled_message_is_refused(store: Store):
    message = a_message()
    await put(store, message)
    with fails(ErrorCode.ALREADY_EXISTS):
        await put(store, message)
    with fails(ErrorCode.NOT_FOUND):
        async with store.write() as tx:
            await tx.outbox.postpone(a_message().id, "x", NOW)


async def test_a_message_that_is_added_once_is_not_added_again_even_after_its_delivery(store: Store):
    message = a_message()
    for delivered in (False, True):
        async with store.write() as tx:
            assert await tx.outbox.add_once(message) is not delivered
            assert not await tx.outbox.add_once(message)
            await tx.outbox.mark_delivered([message.id], NOW)
    assert await claim(store) == []


# --- rows that aren't Evergrant's ----------------------------------------------------------


async def deliver(store: Store) -> tuple[list[str], list[str]]:
    """The messages that a relay would deliver, until none is left, and the rows that it refuses."""
    refused: list[Failure] = []
    delivered: list[str] = []
    while True:
        async with store.write() as tx:
            claimed = await tx.outbox.claim("relay", NOW, HOLD, refuse=refused.append)
            await tx.outbox.mark_delivered([it.id for it in claimed], NOW)
        delivered += [it.id for it in claimed]
        if not claimed and not await waiting(store):
            return delivered, [it.context["row"] for it in refused]


async def waiting(store: Store) -> int:
    async with store.read() as tx:
        return await tx.outbox.depth(NOW)


async def by_hand(store: Store, message: OutboxMessage, **values: Any) -> None:
    async with store.write() as tx:
        mine = col(OutboxRow.id) == message.id
        await tx.connection.execute(update(OutboxRow).where(mine).values(**values))


async def named(store: Store) -> list[str]:
    """The rows that `authority verify`, the doctor and the recurring pass name."""
    return [it.row for it in await broken_configuration(store) if it.table == "outbox"]


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "globex"},
        {"kind": OutboxKind.START_EXPORT.value},
        {"target": "connection:acme:con_2"},
        {"name": SignalName.ROTATE.value},
        {"payload": {"reason": "somebody else's"}},
        {"created_at": NOW + timedelta(seconds=1)},
        {"mac": "0" * 64},
        {"mac": None},
    ],
)
async def test_a_changed_message_is_refused_and_named_and_holds_up_no_other(
    store: Store, change: dict[str, Any]
):
    changed, behind = a_message(), a_message()
    await put(store, changed, behind)
    await by_hand(store, changed, **change)
    assert await named(store) == [changed.id]
    assert await deliver(store) == ([behind.id], [changed.id])
    assert await named(store) == [changed.id]


async def test_a_message_that_another_hand_wrote_is_refused(store: Store):
    ours, theirs = a_message(), a_message()
    async with store.write() as tx:
        await insert(tx.connection, OutboxRow, column_values(theirs, revision=1, mac=None))
    await put(store, ours)
    assert await deliver(store) == ([ours.id], [theirs.id])


async def test_an_authenticator_is_of_one_row_alone(store: Store):
    one, other = a_message(), a_message("connection:acme:con_2")
    await put(store, one, other)
    async with store.read() as tx:
        query = select(col(OutboxRow.mac)).where(col(OutboxRow.id) == one.id)
        copied = (await tx.connection.execute(query)).scalar_one()
    await by_hand(store, other, mac=copied)
    assert await deliver(store) == ([one.id], [other.id])


async def test_values_that_no_type_has_hold_up_nobody(store: Store):
    """SQLite keeps any value in any column; PostgreSQL refuses it."""
    broken, other = a_message("a"), a_message("b")
    await put(store, broken, other)
    async with store.write() as tx:
        if tx.connection.dialect.name != "sqlite":
            return
        statement = text("UPDATE outbox SET created_at = 'never', payload = '{' WHERE id = :id")
        await tx.connection.execute(statement, {"id": broken.id})
    assert await deliver(store) == ([other.id], [broken.id])
    assert await named(store) == [broken.id]


@pytest.mark.parametrize(
    ("message", "accepted"),
    [
        ({"kind": OutboxKind.ADVANCE_CALL_APPROVAL, "name": ""}, True),
        ({"kind": OutboxKind.WAKE_WEBHOOK, "name": ""}, True),
        ({"kind": OutboxKind.START_WORKFLOW, "name": ""}, True),
        ({"name": SignalName.CONSENT_GRANTED}, False),
        ({"name": SignalName.REVOKE}, False),
        ({"kind": OutboxKind.START_EXPORT, "name": ""}, False),
        ({"kind": OutboxKind.START_EXPORT, "name": SignalName.CONSENT_GRANTED}, False),
        ({"kind": OutboxKind.STOP_AGENT, "name": ""}, False),
    ],
)
async def test_a_gateways_process_says_what_a_gateway_says_and_no_more(
    store: Store, key_path: Path, message: dict[str, Any], accepted: bool
):
    said = a_message(**message)
    async with store.write() as tx:
        await Outbox(tx.connection, KeyRing.open(key_path, Role.GATEWAY)).add(said)
    delivered, refused = await deliver(store)
    assert (delivered, refused) == (([said.id], []) if accepted else ([], [said.id]))


async def test_an_operator_may_have_a_refused_message_delivered(store: Store):
    message, other = a_message("a"), a_message("b")
    await put(store, message, other)
    for it in (message, other):
        await by_hand(store, it, mac=None)
    assert await deliver(store) == ([], [message.id, other.id])
    assert await accept(store, {message.id}) == [message.id]
    assert await deliver(store) == ([message.id], [])
    assert await named(store) == [other.id]
