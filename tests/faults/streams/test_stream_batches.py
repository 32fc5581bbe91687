"""Batches of audit records to receivers: each once and in order, and again after whatever went wrong."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest_asyncio
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from sqlalchemy import delete, update
from sqlmodel import col
from standardwebhooks import Webhook as Judge

from activities.audit_streams import AuditStreamSender, InstallationReceiver, StreamReceiver
from evergrant_server import audit
from evergrant_server.audit.streams import cursors
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.audit_streams.state import MOST_RECORDS, StreamState
from evergrant_server.core.audit_streams.stream import (
    INSTALLATION_STREAM,
    AuditStream,
    StreamBegin,
    StreamFormat,
    StreamProblem,
)
from evergrant_server.core.ids import StreamId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_signatures import new_signing_secret
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.store import Store
from evergrant_server.store.audit_streams import AuditStreamRow, StreamAccess
from evergrant_server.store.audit_tables import AuditRow
from tests.fakes.clock import SetClock
from tests.fakes.events.webhook_receiver import Received, Receiver
from tests.fakes.otlp import running_receiver
from tests.fakes.patience import PATIENCE_S, eventually

ACME, OTHER = Tenant("acme"), Tenant("other")
SOURCE = "https://evergrant.example"
SECRET = new_signing_secret(b"a secret of a stream, 32 bytes !")
FIRST = 0  # the number of a shard's first record
Places = dict[str, list[int]]


def numbers(count: int, behind: int = 0) -> list[int]:
    """The numbers of so many records of a shard, behind its first ones."""
    return list(range(FIRST + behind, FIRST + behind + count))


class Streams:
    """Streams of a store, their receiver, and workers that send them."""

    def __init__(self, store: Store, clock: SetClock, receiver: Receiver) -> None:
        self.store, self.clock, self.receiver = store, clock, receiver
        self.senders: list[AuditStreamSender] = []

    async def record(self, count: int = 1, *, tenant: Tenant = ACME, shard: str = "main") -> None:
        entries = [
            AuditEntry(
                tenant=tenant,
                at=self.clock.now(),
                action=AuditAction.LEASE_ISSUED,
                object=f"con_{number}",
                context=RequestContext(by="app:pipeline", trace_id="a" * 32),
                detail={"number": number},
            )
            for number in range(count)
        ]
        async with self.store.write() as tx:
            await audit.append_all(tx, entries, shard=shard)

    async def put(
        self,
        *,
        tenant: Tenant = ACME,
        url: str | None = None,
        format: StreamFormat = StreamFormat.CLOUDEVENTS,
        now: bool = False,
        disabled: bool = False,
    ) -> AuditStream:
        id, at = StreamId(new_id("stm")), self.clock.now()
        stream = AuditStream(
            tenant=tenant,
            id=id,
            name=id[4:10],
            url=url or self.receiver.url,
            format=format,
            disabled=disabled,
            secret_changed_at=at,
            created_at=at,
            changed_at=at,
        )
        state = StreamState(tenant=tenant, id=id)
        async with self.store.write() as tx:
            stream = await tx.audit_streams.add(stream, SECRET, {"Authorization": Secret("Splunk hush")})
            await tx.stream_states.add(state)
            if now:
                await cursors.begin_at_end(tx, state)
        return stream

    def sender(self, installation: InstallationReceiver | None = None, **limits: Any) -> AuditStreamSender:
        sender = AuditStreamSender(self.store, self.egress(**limits), self.clock, SOURCE, installation)
        self.senders.append(sender)
        return sender

    def egress(self, **limits: Any) -> Egress:
        return Egress(EgressPolicy(allow=(self.receiver.allowance,)), **limits)

    async def state(self, stream: AuditStream) -> StreamState:
        async with self.store.read() as tx:
            state = await tx.stream_states.get(stream.tenant, stream.id)
        assert state is not None
        return state

    async def until(self, stream: AuditStream, *, sent: int | None = None, failures: int = 0) -> StreamState:
        """Wait until nobody sends the stream, and it has sent so many records or failed so often."""

        def is_there(state: StreamState) -> bool:
            done = sent is None or state.sent >= sent
            return state.claimed_by is None and done and state.failures == failures

        return await eventually(lambda: self.state(stream), is_there)

    async def received_places(self) -> Places:
        return self.places()

    def places(self, messages: list[Received] | None = None) -> Places:
        """The numbers that were taken, by tenant and shard, in the order of their arrival."""
        numbers: Places = defaultdict(list)
        for message in self.receiver.received if messages is None else messages:
            if message.status < 300:
                for event in json.loads(message.body):
                    shard, _, number = event["id"].partition("/")
                    numbers[f"{event['source'].rpartition('/')[2]}/{shard}"].append(int(number))
        return dict(numbers)


@pytest_asyncio.fixture
async def at(store: Store, clock: SetClock) -> AsyncIterator[Streams]:
    async with Receiver() as receiver:
        of_test = Streams(store, clock, receiver)
        yield of_test
        for sender in of_test.senders:
            await sender.stop()


async def test_each_record_comes_once_and_in_the_order_of_its_shard(at: Streams):
    await at.record(3)
    await at.record(2, shard="api-1")
    await at.record(2, tenant=OTHER)
    stream, sender = await at.put(), at.sender()
    await sender.look()
    await at.until(stream, sent=5)
    await at.record(MOST_RECORDS + 7, shard="api-1")
    await at.record(1, shard="begun-later")
    await sender.look()
    state = await at.until(stream, sent=5 + MOST_RECORDS + 8)
    assert at.places() == {
        "acme/main": numbers(3),
        "acme/api-1": numbers(MOST_RECORDS + 9),
        "acme/begun-later": numbers(1),
    }
    assert (state.unsent, state.oldest_at, state.failures) == (0, None, 0)
    assert all(len(json.loads(message.body)) <= MOST_RECORDS for message in at.receiver.received)


async def test_a_batch_is_signed_and_has_the_streams_headers(at: Streams):
    await at.record()
    stream = await at.put()
    await at.sender().look()
    await at.until(stream, sent=1)
    (message,) = at.receiver.received
    assert message.headers["authorization"] == "Splunk hush"
    moment = datetime.fromtimestamp(int(message.headers["webhook-timestamp"]), UTC)
    expected = Judge(SECRET.reveal()).sign(message.id, moment, message.body.decode())
    assert message.headers["webhook-signature"] == expected
    async with at.store.read() as tx:
        stored = await tx.audit_streams.get(ACME, stream.id)
    assert stored is not None
    assert "in-the-url" not in stored.url


async def test_a_stream_that_begins_now_sends_what_comes_later(at: Streams):
    await at.record(3)
    stream, sender = await at.put(now=True), at.sender()
    await at.record(1)
    await at.record(2, shard="api-1")
    await sender.look()
    await at.until(stream, sent=3)
    assert at.places() == {"acme/main": numbers(1, behind=3), "acme/api-1": numbers(2)}


async def test_a_receiver_that_is_away_gets_everything_later_one_record_first(at: Streams):
    await at.record(4)
    at.receiver.answer = 500
    stream, sender = await at.put(), at.sender()
    pauses: list[timedelta] = []
    for failures in (1, 2, 3):
        await sender.look()
        state = await at.until(stream, failures=failures)
        assert state.paused_until is not None
        pauses.append(state.paused_until - at.clock.now())
        before = len(at.receiver.received)
        await sender.look()
        assert len(at.receiver.received) == before, "nothing is sent during a pause"
        at.clock.advance(pauses[-1].total_seconds())
    assert pauses[0] < pauses[1] < pauses[2]
    assert (state.unsent, state.problem, state.response_status) == (4, StreamProblem.REFUSED, 500)
    assert state.oldest_at is not None
    at.receiver.answer = 204
    await sender.look()
    await at.until(stream, sent=4)
    assert at.places() == {"acme/main": numbers(4)}
    sizes = [len(json.loads(message.body)) for message in at.receiver.received]
    assert sizes == [4, 1, 1, 1, 2, 1]


async def test_what_was_taken_by_a_worker_that_died_is_sent_again_by_another(at: Streams):
    await at.record(2)
    stream, dying = await at.put(), at.sender()
    held = asyncio.Event()

    async def never(_: Received) -> int:
        held.set()
        await asyncio.Event().wait()
        return 204

    at.receiver.answer = never
    await dying.look()
    async with asyncio.timeout(PATIENCE_S):
        await held.wait()
    other = at.sender()
    at.receiver.answer = 204
    await other.look()
    assert at.places() == {}, "another worker has claimed it"
    at.clock.advance(61)
    await other.look()
    await at.until(stream, sent=2)
    assert at.places() == {"acme/main": numbers(2)}
    await dying.stop()
    assert (await at.state(stream)).sent == 2


async def test_a_worker_that_stops_leaves_its_streams_to_the_others_at_once(at: Streams):
    await at.record(1)
    stream, stopping = await at.put(), at.sender()
    held = asyncio.Event()

    async def slowly(_: Received) -> int:
        held.set()
        await asyncio.sleep(PATIENCE_S)
        return 204

    at.receiver.answer = slowly
    await stopping.look()
    async with asyncio.timeout(PATIENCE_S):
        await held.wait()
    await stopping.stop()
    at.receiver.answer = 204
    await at.sender().look()
    await at.until(stream, sent=1)


async def test_a_slow_receiver_slows_no_other_stream(at: Streams):
    await at.record(1)
    await at.record(3, tenant=OTHER)
    async with Receiver() as slow:
        slow.answer = lambda _: asyncio.Event().wait()
        hanging = [await at.put(url=slow.url) for _ in range(25)]
        sender = AuditStreamSender(
            at.store,
            Egress(EgressPolicy(allow=(at.receiver.allowance, slow.allowance))),
            at.clock,
            SOURCE,
        )
        at.senders.append(sender)
        await sender.look()
        await slow.until_busy(2)
        quick = await at.put(tenant=OTHER)
        await sender.look()
        await at.until(quick, sent=3)
        assert at.places() == {"other/main": numbers(3)}
        assert slow.most_at_once < 20, "one tenant's streams leave turns to the others"
        await sender.stop()
    assert (await at.state(hanging[0])).sent == 0


async def test_a_stream_that_was_deleted_while_it_is_sent_stops(at: Streams):
    await at.record(MOST_RECORDS * 2)
    stream, sender = await at.put(), at.sender()

    async def delete_it(_: Received) -> int:
        async with at.store.write() as tx:
            await tx.audit_streams.delete(ACME, stream.id)
        return 204

    at.receiver.answer = delete_it
    await sender.look()
    await at.receiver.until(1)
    await eventually(sender.look, lambda _: sender.is_idle)
    assert len(at.receiver.received) == 1
    async with at.store.read() as tx:
        assert await tx.stream_states.get(ACME, stream.id) is None
        assert not await tx.stream_states.any()


async def test_a_disabled_stream_and_one_that_was_changed_by_hand_send_nothing(at: Streams):
    await at.record(2)
    disabled, changed, sender = await at.put(disabled=True), await at.put(), at.sender()
    async with at.store.write() as tx:
        mine = col(AuditStreamRow.id) == changed.id
        await tx.connection.execute(update(AuditStreamRow).where(mine).values(format="ocsf"))
    await sender.look()
    state = await at.until(changed, failures=1)
    assert state.problem is StreamProblem.UNUSABLE
    assert at.receiver.received == []
    assert (await at.state(disabled)).failures == 0


async def test_a_tenants_stream_goes_only_where_egress_allows(at: Streams):
    await at.record()
    stream = await at.put(url="http://127.0.0.1:9/in")
    await at.sender().look()
    assert (await at.until(stream, failures=1)).problem is StreamProblem.EGRESS_REFUSED


async def test_the_installations_stream_has_every_tenants_records_and_its_own(at: Streams):
    await at.record(2)
    await at.record(1, tenant=OTHER)
    await at.record(1, tenant=INSTALLATION)
    access = StreamAccess(Secret(at.receiver.url), {}, ())
    installation = InstallationReceiver(
        StreamReceiver(StreamFormat.CLOUDEVENTS, access), StreamBegin.OLDEST, at.egress()
    )
    await at.sender(installation).look()
    async with at.store.read() as tx:
        state = await tx.stream_states.get(INSTALLATION, INSTALLATION_STREAM)
    assert state is not None
    await eventually(
        at.received_places, lambda places: {"acme/main", "other/main", "-/main"} <= places.keys()
    )
    assert at.places()["acme/main"] == numbers(2)
    assert at.places()["other/main"] == numbers(1)
    assert "webhook-signature" not in at.receiver.received[0].headers


async def test_records_that_were_deleted_by_hand_hold_nothing_up(at: Streams):
    await at.record(5)
    stream, sender = await at.put(), at.sender()
    async with at.store.write() as tx:
        gone = (col(AuditRow.tenant) == ACME) & col(AuditRow.seq).in_([FIRST + 1, FIRST + 4])
        await tx.connection.execute(delete(AuditRow).where(gone))
    await sender.look()
    state = await at.until(stream, sent=3)
    assert at.places() == {"acme/main": [FIRST, *numbers(2, behind=2)]}, "the receiver sees the gaps"
    assert state.unsent == 0
    await sender.look()
    assert len(at.receiver.received) == 1


async def test_an_otlp_receiver_gets_log_records(at: Streams, tmp_path: Path):
    """A receiver of another maker (oteltap) takes and understands them."""
    await at.record(3)
    async with running_receiver() as tap:
        stream = await at.put(url=tap.logs_endpoint, format=StreamFormat.OTLP)
        host = tap.logs_endpoint.removeprefix("http://").partition("/")[0]
        sender = AuditStreamSender(at.store, Egress(EgressPolicy(allow=(host,))), at.clock, SOURCE)
        at.senders.append(sender)
        await sender.look()
        await at.until(stream, sent=3)
        await tap.until(lambda: len(tap.logs) == 3)
    bodies = [json.loads(log.body.string_value) for log in tap.logs]
    assert [body["object"] for body in bodies] == ["con_0", "con_1", "con_2"]


async def test_what_an_otlp_receiver_drops_is_not_sent_again(at: Streams):
    await at.record(3)
    at.receiver.answer, at.receiver.answer_body = 200, bytes([0x0A, 0x02, 0x08, 0x02])
    stream = await at.put(format=StreamFormat.OTLP)
    await at.sender().look()
    await at.until(stream, sent=3)
    (message,) = at.receiver.received
    (logs,) = ExportLogsServiceRequest.FromString(message.body).resource_logs
    assert len(logs.scope_logs[0].log_records) == 3
