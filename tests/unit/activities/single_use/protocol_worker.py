"""A worker of the protocol for single-use credentials: a real store, a real journal, and no provider."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import cast

from activities.single_use.attempt import JournaledReply, SingleUseAttempt, SpendRequest
from activities.single_use.intent import CriticalSections
from activities.single_use.protocol import SingleUseProtocol, Spend
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import MAIN_SLOT, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome, TimeLimits
from evergrant_server.crypto import KeyPurpose
from evergrant_server.egress import BeforeSend
from evergrant_server.journal import Journal, JournalEntry, JournalReservation
from evergrant_server.store import Store
from providers.requests.request_format import ProviderAccess, ProviderRequest
from providers.requests.sender import Sender
from providers.responses.error_mapping import UnreadableTokens
from providers.responses.raw_reply import RawReply
from tests.conformance.store.samples import some_tokens
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW

STRICT = RefreshRules(rotation=Rotation.STRICT)
NO_ROTATION = RefreshRules(rotation=Rotation.NONE)
LIMITS = TimeLimits()
YES = RawReply(200, {"content-type": "application/json"}, b'{"access_token": "at-2"}')
NO = RawReply(400, {}, b'{"error": "invalid_grant"}')

Judge = Callable[[RawReply], TokenSet]


def refusing(code: ErrorCode) -> Judge:
    """A judge to whom every answer is this failure."""

    def judge(reply: RawReply) -> TokenSet:
        raise Failure(code)

    return judge


def unread(reply: RawReply) -> TokenSet:
    """Tokens by a definition that says something else of their lifetime."""
    raise UnreadableTokens(ErrorCode.REPLY_UNREADABLE, "a lifetime that is a string")


@dataclass
class RecordedOutcome(Spend[str]):
    """What an ending was recorded, and what lay on the disk by then."""

    journal: Journal
    call: ConnectionCall = field(default_factory=lambda: some_call("con_1"))
    judges: Judge = lambda reply: some_tokens("at-2", "rt-2") if reply == YES else some_tokens("of another")
    commits: Callable[[], Awaitable[None]] | None = None
    spends: bool = True
    provisional: bool = False
    committed: list[SingleUseAttempt] = field(default_factory=list)
    failed: list[tuple[ErrorCode, AttemptOutcome | None]] = field(default_factory=list)
    failures: list[tuple[str, Failure]] = field(default_factory=list)  # of which attempt
    entries: list[str] = field(default_factory=list)

    @property
    def spends_credential(self) -> bool:
        return self.spends

    def judge(self, reply: RawReply, came_at: datetime) -> TokenSet:
        return self.judges(reply)

    async def commit(self, attempt: SingleUseAttempt, tokens: TokenSet) -> str:
        self.entries += [it.name for it in self.journal.folder.glob("*/*.entry")]
        if self.commits is not None:
            await self.commits()
        self.committed.append(attempt)
        return tokens.access_token.reveal()

    async def fail(self, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None) -> str:
        self.failed.append((failure.code, outcome))
        self.failures.append((attempt.row.id, failure))
        return failure.code


NOWHERE = cast(ProviderAccess, None)


@dataclass(frozen=True)
class ScriptedRequest(SpendRequest):
    """A request whose answer is a function of this test's."""

    answer: Callable[[BeforeSend], Awaitable[RawReply]]
    access: ProviderAccess = NOWHERE
    rules: RefreshRules = STRICT

    def build(self) -> ProviderRequest:
        return cast(ProviderRequest, self.answer)


class ScriptedSender(Sender):
    """Stands in for the one that talks to providers."""

    def __init__(self) -> None:
        """It has no way out."""

    async def send(
        self, access: ProviderAccess, request: ProviderRequest, *, before_send: BeforeSend | None = None
    ) -> RawReply:
        answer = cast(Callable[[BeforeSend], Awaitable[RawReply]], request)
        assert before_send is not None
        return await answer(before_send)


class Worker:
    """One process: its lock, its journal and its critical sections."""

    def __init__(
        self, store: Store, clock: SetClock, connection: Connection, host: Path, limits: TimeLimits = LIMITS
    ) -> None:
        self.store = store
        self.clock = clock
        self.connection = connection
        self.journal = Journal(host)
        self.sections = CriticalSections()
        self.single_use = SingleUseProtocol(
            store, clock, self.sections, self.journal, ScriptedSender(), limits
        )
        self.tracker = self.single_use.tracker

    def beside(self, limits: TimeLimits = LIMITS) -> "Worker":
        """Another process of the same host."""
        return Worker(self.store, self.clock, self.connection, self.journal.folder, limits)

    async def begin(
        self,
        kind: AttemptKind = AttemptKind.REFRESH,
        rules: RefreshRules = STRICT,
        *,
        token_valid: bool = False,
        connection: Connection | None = None,
    ) -> SingleUseAttempt:
        return await self.single_use.open(
            kind, connection or self.connection, rules, token_valid=token_valid, credential="c"
        )

    async def spend(
        self, use: SingleUseAttempt, recorded: RecordedOutcome, reply: RawReply | Exception = YES
    ) -> str:
        """Send, and be answered with `reply`, or with what goes wrong once the bytes have left."""

        async def answer(before_send: BeforeSend) -> RawReply:
            written = before_send()
            assert written is not None
            written()
            if isinstance(reply, Exception):
                raise reply
            return reply

        return await self.answered(use, recorded, answer)

    async def answered(
        self,
        use: SingleUseAttempt,
        recorded: RecordedOutcome,
        answer: Callable[[BeforeSend], Awaitable[RawReply]],
    ) -> str:
        """Send, and be answered as `answer` decides once the connection is open."""
        recorded.call = a_request(use)
        section = asyncio.create_task(self.single_use.spend(use, ScriptedRequest(answer), recorded))
        return await self.sections.run(use.row.id, section)

    async def dies(self, use: SingleUseAttempt, *, sent: bool) -> None:
        """As the kernel ends a process: its locks go, its files stay."""
        if sent:
            assert reservation_of(use).begin_send()
            reservation_of(use).end_send()
        await asyncio.to_thread(self.journal.release)

    async def row_of(self, attempt: Attempt) -> Attempt:
        async with self.store.read() as tx:
            found = await tx.attempts.get(attempt.tenant, attempt.id)
        assert found is not None
        return found

    async def opened(self) -> Attempt | None:
        async with self.store.read() as tx:
            return await tx.attempts.open_of_any_kind(self.connection.tenant, self.connection.id, MAIN_SLOT)

    def files(self) -> list[str]:
        """The endings of what lies in all journals of its host."""
        found = (it.suffix for it in self.journal.folder.glob("*/*") if it.name != "lock")
        return sorted(found)


def reservation_of(use: SingleUseAttempt) -> JournalReservation:
    assert use.fence is not None
    return use.fence.reservation


def keep_reply(use: SingleUseAttempt) -> JournalEntry:
    """Its reply comes, and its journal has it."""
    return reservation_of(use).write_entry(use.keys.current(KeyPurpose.REFRESH), b"an answer")


def a_request(use: SingleUseAttempt) -> ConnectionCall:
    return some_call(use.row.connection_id)


def some_call(connection: str) -> ConnectionCall:
    return ConnectionCall(
        tenant=Tenant("acme"),
        connection_id=ConnectionId(connection),
        context=RequestContext(by="app:billing", trace_id="b" * 32),
        provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
    )


def journaled(use: SingleUseAttempt, reply: RawReply = YES) -> JournaledReply:
    return JournaledReply.for_request(a_request(use), reply, NOW)
