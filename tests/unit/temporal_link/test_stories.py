"""What a connection's workflows write is sealed for them alone, and what can't be opened is left as it is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update
from sqlmodel import col
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure as FailureProto
from temporalio.converter import (
    ActivitySerializationContext,
    PayloadCodec,
    SerializationContext,
    WorkflowSerializationContext,
)
from temporalio.exceptions import ApplicationError

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import Revoke
from evergrant_server.core.messages.received import UNREADABLE
from evergrant_server.crypto import AssociatedData, KeyPurpose, KeyRing, Role, Sealed
from evergrant_server.crypto.envelope import key_unavailable
from evergrant_server.settings import BadSettings
from evergrant_server.store import Store
from evergrant_server.store.keys import KeyRow
from evergrant_server.temporal_link import connect, stories
from evergrant_server.temporal_link.connect import users_codec
from evergrant_server.temporal_link.stories import ENCODING, StoryCodec, StoryKeys
from tests.fakes.api import SettingsOfTest
from tests.fakes.clock import SetClock
from tests.fakes.databases import sqlite_url
from tests.fakes.failures import fails
from tests.unit.temporal_link.conftest import connection

NAMESPACE = "default"
REVOKE = Revoke(reason="alice@example.com has left", context=RequestContext(by="app:crm"))
Seen = dict[str, float]


@pytest.fixture
async def row(store: Store, clock: SetClock) -> Connection:
    made = connection(1, clock)
    async with store.write() as tx:
        await tx.connections.add(made)
    return made


@pytest.fixture
def codec(store: Store) -> StoryCodec:
    return StoryCodec(StoryKeys(store), NAMESPACE)


def workflow_of(row: Connection, kind: str = "connection") -> str:
    return f"{kind}:{row.tenant}:{row.id}"


def in_workflow(workflow: str) -> SerializationContext:
    return WorkflowSerializationContext(NAMESPACE, workflow)


def in_activity(workflow: str) -> SerializationContext:
    return ActivitySerializationContext(NAMESPACE, "1", "refresh_grant", "q", workflow, "w", is_local=False)


def plain() -> Payload:
    data = json.dumps(REVOKE.model_dump(mode="json")).encode()
    return Payload(metadata={"encoding": b"json/plain"}, data=data)


async def seal(codec: StoryCodec, workflow: str) -> Payload:
    (sealed,) = await codec.with_context(in_workflow(workflow)).encode([plain()])
    return sealed


async def opened(codec: StoryCodec, workflow: str, payload: Payload) -> Payload:
    (decoded,) = await codec.with_context(in_workflow(workflow)).decode([payload])
    return decoded


async def keys_of(store: Store, row: Connection) -> int:
    mine = select(func.count()).select_from(KeyRow).where(col(KeyRow.connection_id) == row.id)
    async with store.read() as tx:
        return (await tx.connection.execute(mine)).scalar_one()


async def destroy(store: Store, row: Connection) -> None:
    async with store.write() as tx:
        await tx.connection.execute(delete(KeyRow).where(col(KeyRow.connection_id) == row.id))


@pytest.mark.parametrize("kind", ["connection", "replaced_grants"])
async def test_a_sealed_payload_shows_its_workflow_alone_and_opens_there(
    codec: StoryCodec, row: Connection, kind: str
):
    workflow = workflow_of(row, kind)
    sealed = await seal(codec, workflow)
    assert dict(sealed.metadata) == {"encoding": ENCODING, "evergrant-workflow": workflow.encode()}
    assert b"alice" not in sealed.SerializeToString()
    assert await opened(codec, workflow, sealed) == plain()
    of_activity = codec.with_context(in_activity(workflow))
    assert await of_activity.decode([sealed]) == [plain()]
    assert await of_activity.decode(await of_activity.encode([plain()])) == [plain()]


@pytest.mark.parametrize(
    "workflow", ["webhook:acme:whk_1", "pipeline-7", "evergrant:reconcile", "connection:acme:con_1:2", ""]
)
async def test_what_other_workflows_write_stays_plain(codec: StoryCodec, workflow: str):
    for context in (in_workflow(workflow), in_activity(workflow)):
        assert await codec.with_context(context).encode([plain()]) == [plain()]
    assert await codec.encode([plain()]) == [plain()]


async def test_what_isnt_sealed_is_read_as_it_is(codec: StoryCodec, row: Connection):
    assert await opened(codec, workflow_of(row), plain()) == plain()


async def test_with_the_setting_off_nothing_is_sealed_and_all_is_opened(
    codec: StoryCodec, store: Store, row: Connection
):
    sealed, workflow = await seal(codec, workflow_of(row)), workflow_of(row)
    off = StoryCodec(StoryKeys(store), NAMESPACE, seals=False)
    assert await seal(off, workflow) == plain()
    assert await opened(off, workflow, sealed) == plain()


async def test_a_payload_of_another_connection_or_workflow_is_left_sealed(
    codec: StoryCodec, store: Store, row: Connection, clock: SetClock
):
    neighbour = connection(2, clock)
    async with store.write() as tx:
        await tx.connections.add(neighbour)
    sealed = await seal(codec, workflow_of(neighbour))
    renamed = Payload(
        metadata={**sealed.metadata, "evergrant-workflow": workflow_of(row).encode()}, data=sealed.data
    )
    replaced = await seal(codec, workflow_of(row, "replaced_grants"))
    for foreign in (sealed, renamed, replaced):
        assert await opened(codec, workflow_of(row), foreign) == foreign


@pytest.mark.parametrize("tampered", ["a byte", "cut", "empty", "another key's name", "no payload inside"])
async def test_a_tampered_payload_is_left_as_it_is_and_never_reaches_workflow_code(
    codec: StoryCodec, store: Store, row: Connection, tampered: str
):
    workflow, sealed = workflow_of(row), await seal(codec, workflow_of(row))
    story = stories.story_of(workflow)
    assert story is not None
    if tampered == "no payload inside":  # only Evergrant itself could make it
        key = await store.find_story_key(row.tenant, row.id)
        assert key is not None
        data = bytes(stories.seal(key, story.place, b"\xff\xff"))
    else:
        data = {
            "a byte": sealed.data[:-1] + bytes((sealed.data[-1] ^ 1,)),
            "cut": sealed.data[:20],
            "empty": b"",
            "another key's name": sealed.data.replace(b"cky_", b"ckz_"),
        }[tampered]
    broken = Payload(metadata=sealed.metadata, data=data)
    assert await opened(codec, workflow, broken) == broken
    converter = connect._story_converter(SettingsOfTest(), store, NAMESPACE).with_context(
        in_workflow(workflow)
    )
    assert await converter.decode([broken], [Revoke]) == [UNREADABLE]
    assert await converter.decode([sealed], [Revoke]) == [REVOKE]


async def test_after_its_key_was_destroyed_a_story_is_unreadable_and_a_live_connection_has_a_new_key(
    codec: StoryCodec, store: Store, row: Connection
):
    workflow, sealed = workflow_of(row), await seal(codec, workflow_of(row))
    await destroy(store, row)
    elsewhere = StoryCodec(StoryKeys(store), NAMESPACE)
    assert await opened(elsewhere, workflow, sealed) == sealed
    again = await seal(elsewhere, workflow)
    assert again.metadata["encoding"] == ENCODING
    assert await opened(elsewhere, workflow, again) == plain()
    assert await opened(elsewhere, workflow, sealed) == sealed


async def test_without_a_connection_no_key_is_made(codec: StoryCodec, store: Store, row: Connection):
    gone = row.__replace__(id=ConnectionId("con_" + "9" * 26))
    assert await seal(codec, workflow_of(gone)) == plain()
    assert await keys_of(store, gone) == 0


async def test_a_key_is_held_for_a_minute_and_costs_no_query_meanwhile(
    codec: StoryCodec, store: Store, row: Connection, monkeypatch: pytest.MonkeyPatch
):
    now: Seen = {"s": 1000.0}
    monkeypatch.setattr(stories, "seconds_since_boot", lambda: now["s"])
    workflow, sealed = workflow_of(row), await seal(codec, workflow_of(row))
    await destroy(store, row)
    now["s"] += 59
    assert await opened(codec, workflow, sealed) == plain()
    now["s"] += 2
    assert await opened(codec, workflow, sealed) == sealed

    def no_query(*_: object) -> Any:
        raise AssertionError("the store was read")

    monkeypatch.setattr(Store, "find_story_key", no_query)
    assert await opened(codec, workflow, sealed) == sealed, "that a key is gone is remembered too"


async def test_a_root_that_the_ring_no_longer_holds_opens_nothing(
    codec: StoryCodec, store: Store, row: Connection, monkeypatch: pytest.MonkeyPatch
):
    """A held key never outlives the bound for which the roots are held."""
    sealed = await seal(codec, workflow_of(row))

    def away(self: KeyRing, purpose: KeyPurpose, place: AssociatedData, *_: object) -> Any:
        raise key_unavailable(place, "the key service is away")

    monkeypatch.setattr(KeyRing, "unwrap", away)
    assert await opened(codec, workflow_of(row), sealed) == plain(), "it is held"
    monkeypatch.setattr(store.ring.hold_of(KeyPurpose.STORY), "over", True)
    with fails(ErrorCode.KEY_UNAVAILABLE):
        await opened(codec, workflow_of(row), sealed)
    with fails(ErrorCode.KEY_UNAVAILABLE):
        await seal(codec, workflow_of(row))


async def test_while_the_store_is_away_nothing_is_taken_for_unreadable(
    codec: StoryCodec, store: Store, row: Connection, monkeypatch: pytest.MonkeyPatch
):
    """A signal that can't be read is dropped: one that only can't be read now must fail its task."""
    sealed, elsewhere = await seal(codec, workflow_of(row)), StoryCodec(StoryKeys(store), NAMESPACE)
    monkeypatch.setattr(store._database, "autocommit", _unreachable)
    with fails(ErrorCode.STORE_UNAVAILABLE):
        await opened(elsewhere, workflow_of(row), sealed)
    with fails(ErrorCode.STORE_UNAVAILABLE):
        await seal(elsewhere, workflow_of(row))


def _unreachable() -> Any:
    raise OSError("the database is away")


async def test_a_key_row_that_another_hand_changed_holds_up_no_message(
    store: Store, row: Connection, caplog: pytest.LogCaptureFixture
):
    """Nothing blocks a revocation: its message goes plain, with an alarm."""
    workflow, sealed = workflow_of(row), await seal(StoryCodec(StoryKeys(store), NAMESPACE), workflow_of(row))
    async with store.write() as tx:
        mine = col(KeyRow.connection_id) == row.id
        query = select(KeyRow.sealed_key).where(mine)  # type: ignore[call-overload]  # a column
        key = (await tx.connection.execute(query)).scalar_one()
        bent = Sealed(key[:-1] + bytes((key[-1] ^ 1,)))
        await tx.connection.execute(update(KeyRow).where(mine).values(sealed_key=bent))
    elsewhere = StoryCodec(StoryKeys(store), NAMESPACE)
    assert await seal(elsewhere, workflow) == plain()
    assert await opened(elsewhere, workflow, sealed) == sealed
    assert "story unreadable" in caplog.text
    assert row.id in {getattr(record, "object", "").rpartition(":")[2] for record in caplog.records}


async def test_each_role_writes_and_reads_and_two_processes_make_one_key(
    tmp_path: Path, key_path: Path, store: Store, row: Connection, clock: SetClock
):
    opened_stores = [
        await Store.open(sqlite_url(tmp_path), KeyRing.open(key_path, role), clock) for role in Role
    ]
    try:
        codecs = [StoryCodec(StoryKeys(each), NAMESPACE) for each in opened_stores]
        sealed = [await seal(codec, workflow_of(row)) for codec in codecs]
        for codec in codecs:
            assert [await opened(codec, workflow_of(row), each) for each in sealed] == [plain()] * len(Role)
        assert await keys_of(store, row) == 1
    finally:
        for each in opened_stores:
            await each.close()


async def test_a_revocation_leaves_the_storys_key(codec: StoryCodec, store: Store, row: Connection):
    sealed = await seal(codec, workflow_of(row))
    async with store.write() as tx:
        await tx.sealer.get_or_create_keys(row.tenant, row.id, (KeyPurpose.LEASE, KeyPurpose.REFRESH))
        assert await tx.grants.shred(row.tenant, row.id) == 2
    assert await opened(StoryCodec(StoryKeys(store), NAMESPACE), workflow_of(row), sealed) == plain()
    async with store.write() as tx:
        assert await tx.sealer.destroy_keys(row.tenant, row.id) == 1  # an erasure


class Reversing(PayloadCodec):
    """A codec of the users: turns the bytes around, and raises for what it hasn't."""

    def __init__(self, away: bool = False) -> None:
        self.away = away

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        encoding = {"encoding": b"binary/reversed"}
        return [Payload(metadata=encoding, data=payload.SerializeToString()[::-1]) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        if self.away:
            raise TimeoutError("their key service is away")
        return [Payload.FromString(payload.data[::-1]) for payload in payloads]


async def test_the_users_codec_comes_first_and_is_inside_of_the_seal(store: Store, row: Connection):
    workflow, users = workflow_of(row), Reversing()
    composed = StoryCodec(StoryKeys(store), NAMESPACE, users)
    sealed = await seal(composed, workflow)
    assert sealed.metadata["encoding"] == ENCODING
    assert await opened(composed, workflow, sealed) == plain()
    without = StoryCodec(StoryKeys(store), NAMESPACE)
    assert (await opened(without, workflow, sealed)).metadata["encoding"] == b"binary/reversed"
    of_pipeline = await composed.with_context(in_workflow("pipeline-7")).encode([plain()])
    assert of_pipeline == await users.encode([plain()]), "pipelines read it with their own codec"
    (from_pipeline,) = await users.encode([plain()])
    assert await opened(composed, workflow, from_pipeline) == plain()


async def test_what_the_users_codec_raises_for_is_left_and_its_absence_is_not_taken_for_that(
    store: Store, row: Connection
):
    garbage = Payload(metadata={"encoding": b"binary/reversed"}, data=b"\xff\xff")
    codec = StoryCodec(StoryKeys(store), NAMESPACE, Reversing())
    assert await opened(codec, workflow_of(row), garbage) == garbage
    with pytest.raises(TimeoutError):
        await opened(StoryCodec(StoryKeys(store), NAMESPACE, Reversing(away=True)), workflow_of(row), garbage)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no.such.module:codec", "can't be imported"),
        ("json:loads", "is no temporalio.converter.PayloadCodec"),
        ("json", "can't be imported"),
        (":", "can't be imported"),
    ],
)
def test_a_codec_that_cant_be_had_is_a_bad_setting(name: str, why: str):
    with pytest.raises(BadSettings, match="EVERGRANT_TEMPORAL_CODEC: .*" + why):
        users_codec(name)


def test_a_codec_is_named_by_its_object_or_its_class():
    assert isinstance(users_codec(f"{__name__}:Reversing"), Reversing)
    assert users_codec("") is None


async def test_messages_and_traces_of_failures_are_sealed_and_their_codes_arent(
    store: Store, row: Connection
):
    converter = connect._story_converter(SettingsOfTest(), store, NAMESPACE)
    try:
        raise ApplicationError("alice isn't there", type="not_found", non_retryable=True)
    except ApplicationError as error:
        raised = error
    written = FailureProto()
    await converter.with_context(in_workflow(workflow_of(row))).encode_failure(raised, written)
    assert b"alice" not in written.SerializeToString()
    assert b"test_stories.py" not in written.SerializeToString()
    assert written.application_failure_info.type == "not_found"
    read = await converter.with_context(in_workflow(workflow_of(row))).decode_failure(written)
    assert isinstance(read, ApplicationError)
    assert (read.message, read.type, read.non_retryable) == ("alice isn't there", "not_found", True)
    of_webhook = FailureProto()
    await converter.with_context(in_workflow("webhook:acme:whk_1")).encode_failure(raised, of_webhook)
    assert of_webhook.message == "alice isn't there", "what isn't sealed stays readable in the Temporal UI"


async def test_a_history_is_opened_wherever_payloads_stand_in_it(codec: StoryCodec, row: Connection):
    sealed = await seal(codec, workflow_of(row))
    written = stories.MessageToDict(sealed)
    foreign = {**written, "data": written["data"][:-4] + "AAAA"}
    events = [{"userMetadata": {"summary": written}, "a": {"input": {"payloads": [written, foreign]}}}]
    (event,) = await codec.open_events(events)
    read = stories.MessageToDict(plain())
    assert event == {"userMetadata": {"summary": read}, "a": {"input": {"payloads": [read, foreign]}}}
    assert events[0]["userMetadata"]["summary"] is written, "the events are as they were"
    assert stories.is_sealed(foreign)
    assert not stories.is_sealed(read)
