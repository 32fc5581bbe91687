"""A worker of the protocol for single-use credentials: a real store, a real journal, and no provider."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from activities.critical import CriticalSections
from activities.single_use import Ending, SingleUse, Use
from evergrant_server.core.attempt import Attempt, AttemptKind, Limits, Outcome
from evergrant_server.core.clock import SetClock
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.grant import MAIN, TokenSet
from evergrant_server.core.messages import Asked, Call, Provenance
from evergrant_server.core.provider import RefreshRules, Rotation
from evergrant_server.egress import BeforeSend
from evergrant_server.journal import Journal
from evergrant_server.store import Store
from providers.reply import RawReply
from providers.verdicts import UnreadTokens
from tests.conformance.store.samples import some_tokens

STRICT = RefreshRules(rotation=Rotation.STRICT)
NO_ROTATION = RefreshRules(rotation=Rotation.NONE)
LIMITS = Limits()
YES = RawReply(200, {"content-type": "application/json"}, b'{"access_token": "at-2"}')
NO = RawReply(400, {}, b'{"error": "invalid_grant"}')

Judge = Callable[[RawReply], TokenSet]


def refusing(code: Code) -> Judge:
    """A judge to whom every answer is this failure."""

    def judge(reply: RawReply) -> TokenSet:
        raise Failure(code)

    return judge


def unread(reply: RawReply) -> TokenSet:
    """Tokens by a definition that says something else of their lifetime."""
    raise UnreadTokens(Code.REPLY_UNREADABLE, "a lifetime that is a string")


def fails(code: Code, why: str = "") -> "pytest.RaisesExc[Failure]":
    return pytest.RaisesExc(Failure, check=lambda it: it.code is code and why in it.detail)


@dataclass
class Told:
    """What an ending was told, and what lay on the disk by then."""

    journal: Journal
    judge: Judge = lambda reply: some_tokens("at-2", "rt-2") if reply == YES else some_tokens("of another")
    commits: Callable[[], Awaitable[None]] | None = None
    spends: bool = True
    committed: list[Use] = field(default_factory=list)
    settled: list[tuple[Code, Outcome | None]] = field(default_factory=list)
    failures: list[tuple[str, Failure]] = field(default_factory=list)  # of which attempt
    entries: list[str] = field(default_factory=list)

    def ending(self, *, provisional: bool = False) -> Ending[str]:
        async def commit(use: Use, tokens: TokenSet) -> str:
            self.entries += [it.name for it in self.journal.folder.glob("*/*.entry")]
            if self.commits is not None:
                await self.commits()
            self.committed.append(use)
            return tokens.access_token.reveal()

        async def settle(use: Use, failure: Failure, outcome: Outcome | None) -> str:
            self.settled.append((failure.code, outcome))
            self.failures.append((use.attempt.id, failure))
            return failure.code

        return Ending(self.judge, commit, settle, provisional=provisional, spends=self.spends)


class Worker:
    """One process: its lock, its journal and its critical sections."""

    def __init__(self, store: Store, clock: SetClock, host: Path, limits: Limits = LIMITS) -> None:
        self.store = store
        self.journal = Journal(host)
        self.sections = CriticalSections()
        self.single_use = SingleUse(store, clock, self.sections, self.journal, limits)

    async def begin(
        self,
        connection: Connection,
        kind: AttemptKind = AttemptKind.REFRESH,
        rules: RefreshRules = STRICT,
        *,
        token_valid: bool = False,
    ) -> Use:
        return await self.single_use.begin(kind, connection, rules, token_valid=token_valid, credential="c")

    async def spend(
        self, use: Use, told: Told, reply: RawReply | Exception = YES, *, provisional: bool = False
    ) -> str:
        """Send, and be answered with `reply`, or with what goes wrong once the bytes have left."""

        async def send(check: BeforeSend) -> RawReply:
            check()()
            if isinstance(reply, Exception):
                raise reply
            return reply

        order, ending = an_order(use), told.ending(provisional=provisional)
        return await self.single_use.spend(use, order, send=send, ending=ending)

    async def dies(self, use: Use, *, sent: bool) -> None:
        """As the kernel ends a process: its locks go, its files stay."""
        assert use.room is not None
        if sent:
            assert use.room.enter()
            use.room.leave()
        await asyncio.to_thread(self.journal.release)

    def files(self) -> list[str]:
        """The endings of what lies in all journals of its host."""
        found = (it.suffix for it in self.journal.folder.glob("*/*") if it.name != "lock")
        return sorted(found)


def an_order(use: Use) -> Call:
    attempt = use.attempt
    return Call(
        tenant=attempt.tenant,
        connection_id=attempt.connection_id,
        asked=Asked(by="app:billing", trace_id="b" * 32),
        provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
    )


async def row(store: Store, attempt: Attempt) -> Attempt:
    async with store.read() as tx:
        found = await tx.attempts.get(attempt.tenant, attempt.id)
    assert found is not None
    return found


async def opened(store: Store, connection: Connection) -> Attempt | None:
    async with store.read() as tx:
        return await tx.attempts.opened(connection.tenant, connection.id, MAIN)
