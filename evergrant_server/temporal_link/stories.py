"""Seals what a connection's workflows write into Temporal: its story, by a key of the connection alone.

A codec of the data converter (ADR 0103), on the event loop and outside of every transaction. What isn't
sealed stays readable: what other workflows write, and histories of before. What can't be opened is left as
it is: workflow code never sees it (`received`), and the people who read it are told so.

A codec that users bring comes first when a payload is written and last when it is read, for all workflows.
"""

import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, cast

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    ActivitySerializationContext,
    DefaultFailureConverter,
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)

from evergrant_server.core.bounded import Bounded
from evergrant_server.core.clock import seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.names import STORY_WORKFLOW_ID
from evergrant_server.crypto import AssociatedData, KeyPurpose, SealingKey, key_id_of, open_sealed, seal
from evergrant_server.crypto.envelope import Hold
from evergrant_server.store import Store
from evergrant_server.store.database.engine import Pool
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.stories")

ENCODING = b"binary/evergrant-sealed"
_JSON_ENCODING = base64.b64encode(ENCODING).decode()
_WORKFLOW = "evergrant-workflow"  # of the metadata: the id of the workflow that wrote it
_HELD_S = 60.0  # a key is read again after this: as long it outlives the connection's erasure in a process
_MOST_HELD = 10_000  # about 5 MB


JsonPayload = dict[str, Any]  # as Temporal's JSON has it: its bytes in base64
_UNREADABLE: JsonPayload = {
    "metadata": {"encoding": base64.b64encode(b"json/plain").decode()},
    "data": base64.b64encode(
        b'"not readable: the connection was erased, or you may not read its story"'
    ).decode(),
}


class ConnectionStory(NamedTuple):
    """Whose story a workflow of this id writes."""

    tenant: Tenant
    connection_id: ConnectionId
    workflow_id: str

    @property
    def place(self) -> AssociatedData:
        """What a payload's seal is bound to: it opens in this workflow, and in no other."""
        return AssociatedData(self.tenant, "history", self.workflow_id, "payload")


MayRead = Callable[[ConnectionStory | None], Awaitable[bool]]  # None: what belongs to no connection


def story_of(workflow_id: str | None) -> ConnectionStory | None:
    """The story that a workflow's messages belong to; None for one that is no connection's."""
    match = STORY_WORKFLOW_ID.match(workflow_id or "")
    if match is None:
        return None
    return ConnectionStory(Tenant(match["tenant"]), ConnectionId(match["connection"]), match[0])


def sealed_story(payload: Payload) -> ConnectionStory | None:
    """The story that a sealed payload says it belongs to; None for one that isn't sealed."""
    if payload.metadata.get("encoding") != ENCODING:
        return None
    return story_of(payload.metadata.get(_WORKFLOW, b"").decode("ascii", "replace"))


def is_sealed(payload: dict[str, Any]) -> bool:
    """True for a sealed payload in Temporal's JSON."""
    metadata = payload.get("metadata")
    return (
        isinstance(metadata, dict) and cast("dict[str, object]", metadata).get("encoding") == _JSON_ENCODING
    )


class _HeldKey(NamedTuple):
    """A key, or that there is none, and how long that counts: no longer than its root is held."""

    key: SealingKey | None
    until: float
    hold: Hold


class StoryKeys:
    """The keys of stories, each held for a minute and none for longer than the ring holds its roots."""

    def __init__(self, store: Store) -> None:
        self._store = store.in_pool(Pool.LEASES)
        self._held = Bounded[tuple[str, str, str], _HeldKey](_MOST_HELD)

    async def current(self, story: ConnectionStory) -> SealingKey | None:
        """The key that seals now, made where there is none; None: the connection was erased.

        Raises Failure KEY_UNAVAILABLE, STORE_UNAVAILABLE.
        """
        return await self._find(story, "")

    async def by_id(self, story: ConnectionStory, key_id: str) -> SealingKey | None:
        """The story's key with this id; None: it was destroyed, or never was one. Raises as `current`."""
        return await self._find(story, key_id)

    async def _find(self, story: ConnectionStory, key_id: str) -> SealingKey | None:
        place, now = (story.tenant, story.connection_id, key_id), seconds_since_boot()
        held = self._held.get(place)
        if held is not None and now < held.until and not held.hold.over:
            return held.key
        hold, key = self._store.ring.hold_of(KeyPurpose.STORY), None  # of the roots that unwrap it now
        try:
            key = await self._read(story, key_id)
        except Failure as failure:
            if failure.code is not ErrorCode.SEAL_BROKEN:
                raise
            _report(logging.ERROR, failure.detail, story)  # a revocation waits for no row that was altered
        held = _HeldKey(key, now + _HELD_S, hold)
        if key is not None:
            self._held[story.tenant, story.connection_id, key.id] = held
        elif key_id:
            _report(logging.WARNING, f"there is no key {key_id}", story)
        if key is not None or key_id:  # a key that isn't there won't come: ids are never used again
            self._held[place] = held
        return key

    async def _read(self, story: ConnectionStory, key_id: str) -> SealingKey | None:
        key = await self._store.find_story_key(story.tenant, story.connection_id, key_id or None)
        if key is None and not key_id:
            key = await self._store.make_story_key(story.tenant, story.connection_id)
        return key


class StoryCodec(PayloadCodec, WithSerializationContext):
    """Seals and opens the payloads of one story; without one, it seals nothing. With `seals` off it opens."""

    def __init__(
        self, keys: StoryKeys, namespace: str, users: PayloadCodec | None = None, *, seals: bool = True
    ) -> None:
        self._keys = keys
        self._namespace = namespace
        self._users = users
        self._seals = seals
        self._story: ConnectionStory | None = None

    def with_context(self, context: SerializationContext) -> "StoryCodec":
        users = self._users
        if isinstance(users, WithSerializationContext):
            users = users.with_context(context)
        codec = StoryCodec(self._keys, self._namespace, users, seals=self._seals)
        codec._story = _story_of_context(context)
        return codec

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Raises Failure KEY_UNAVAILABLE, STORE_UNAVAILABLE."""
        encoded = list(payloads) if self._users is None else await self._users.encode(payloads)
        story = self._story
        key = await self._keys.current(story) if story is not None and self._seals and encoded else None
        if story is None or key is None:
            return encoded
        return [_sealed(story, key, payload) for payload in encoded]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Open what this story's keys have sealed. Raises Failure KEY_UNAVAILABLE, STORE_UNAVAILABLE."""
        decoded: list[Payload] = []
        for payload in payloads:
            if payload.metadata.get("encoding") == ENCODING:
                payload = await self._opened(payload)
            decoded += await self._users_own(payload)
        return decoded

    async def open_events(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The events of a history, as Temporal's JSON, with the payloads of all stories opened."""
        return [await self._open_json(event) for event in events]

    async def read(self, payload: JsonPayload, may_read: MayRead) -> JsonPayload:
        """A payload as people see it: opened for who may read its story, else a sentence in its place.

        Raises as `decode`, and ValueError for what is no payload.
        """
        try:
            parsed = ParseDict(payload, Payload(), ignore_unknown_fields=True)
        except ParseError:
            raise ValueError("a payload has metadata and data, each in base64") from None
        story = sealed_story(parsed)
        if story is None:
            plain = await self._users_own(parsed) if self._users is not None and await may_read(None) else []
            return MessageToDict(plain[0]) if len(plain) == 1 else payload
        opened = await self._open(parsed, story) if await may_read(story) else None
        return _UNREADABLE if opened is None else MessageToDict(opened)

    async def _open(self, payload: Payload, story: ConnectionStory) -> Payload | None:
        codec = self.with_context(WorkflowSerializationContext(self._namespace, story.workflow_id))
        (decoded,) = await codec.decode([payload])
        return None if decoded.metadata.get("encoding") == ENCODING else decoded

    async def _opened(self, payload: Payload) -> Payload:
        story = self._story
        if story is None or sealed_story(payload) != story:
            return payload
        try:
            key = await self._keys.by_id(story, key_id_of(payload.data, story.place))
            if key is not None:
                return Payload.FromString(open_sealed(key, story.place, payload.data))
        except Failure as failure:
            if failure.code is not ErrorCode.SEAL_BROKEN:
                raise
            _report(logging.WARNING, failure.detail, story)
        except DecodeError:
            _report(logging.WARNING, "a sealed value is no payload", story)
        return payload

    async def _users_own(self, payload: Payload) -> list[Payload]:
        """What the users' codec makes of it. A writer of the namespace may send what it raises for."""
        if self._users is None or payload.metadata.get("encoding") == ENCODING:
            return [payload]
        try:
            return await self._users.decode([payload])
        except OSError:  # a service of theirs is away (TimeoutError is one): the task is tried again
            raise
        except Exception:
            return [payload]

    async def _open_json(self, value: Any) -> Any:
        match value:
            case {"metadata": {"encoding": str() as encoding}, "data": str()} if encoding == _JSON_ENCODING:
                payload = ParseDict(cast("JsonPayload", value), Payload())
                story = sealed_story(payload)
                opened = None if story is None else await self._open(payload, story)
                return cast("JsonPayload", value) if opened is None else MessageToDict(opened)
            case dict():
                members = cast("dict[str, object]", value).items()
                return {name: await self._open_json(member) for name, member in members}
            case list():
                return [await self._open_json(member) for member in cast("list[object]", value)]
            case _:
                return value


class StoryFailureConverter(DefaultFailureConverter, WithSerializationContext):
    """Puts messages and stack traces of a story's failures where the codec seals them."""

    def with_context(self, context: SerializationContext) -> "StoryFailureConverter":
        if _story_of_context(context) is None:
            return self
        return StoryFailureConverter(encode_common_attributes=True)


def _story_of_context(context: SerializationContext) -> ConnectionStory | None:
    if isinstance(context, WorkflowSerializationContext | ActivitySerializationContext):
        return story_of(context.workflow_id)
    return None


def _sealed(story: ConnectionStory, key: SealingKey, payload: Payload) -> Payload:
    metadata = {"encoding": ENCODING, _WORKFLOW: story.workflow_id.encode()}
    return Payload(metadata=metadata, data=seal(key, story.place, payload.SerializeToString()))


def _report(level: int, why: str, story: ConnectionStory) -> None:
    log_event(log, level, LogEvent.STORY_UNREADABLE, why, object=story.workflow_id)
