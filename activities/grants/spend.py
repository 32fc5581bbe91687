"""Spends a credential for tokens, from the client secret and definition that come first to the commit.

There is usually one of each. During a rotation the provider may know either client secret. A client is
authenticated before anything else (RFC 6749 section 3.2.1), so a refused secret has spent no refresh token
and no code. While a version of a definition is staged, what may be its fault is tried again with the version
before it. Each try is an attempt of its own.
"""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from activities.grants import GrantServices
from activities.grants.account_check import revoked_if_ended
from activities.grants.client_secrets import by_client_secret, record_accepted_secret
from activities.grants.provider_revocation import revoke_orphaned_tokens
from activities.single_use.attempt import SingleUseAttempt, SpendRequest
from activities.single_use.intent import open_attempt
from activities.single_use.protocol import Spend
from activities.support.provider_context import ProviderContext
from activities.support.temporal import failed_grant_result, obtained_at
from activities.support.transactions import commit_with_retries
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind
from evergrant_server.core.messages.activities import ConnectionCall, GrantResult
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.store import Store, Transaction
from providers.responses.raw_reply import RawReply

C = TypeVar("C", bound=ConnectionCall)
S = TypeVar("S", bound="GrantSpend[Any]")

_DEFINITION_FAULTS = frozenset(  # replies, and failures to send
    {
        ErrorCode.GRANT_REJECTED,
        ErrorCode.CLIENT_REJECTED,
        ErrorCode.REPLY_UNREADABLE,
        ErrorCode.DISCOVERY_FAILED,
        ErrorCode.EGRESS_REFUSED,
        ErrorCode.HOST_NOT_ACCEPTED,
        ErrorCode.PROVIDER_UNREACHABLE,
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.INVALID_REQUEST,
    }
)


def may_be_definition_fault(failure: Failure, *, provisional: bool) -> bool:
    """True when a staged version may be at fault: then nothing is ended or condemned."""
    return provisional and failure.code in _DEFINITION_FAULTS


@dataclass
class GrantSpend(Spend[GrantResult], Generic[C]):
    """One use of a credential that brings tokens to a connection: a flow says what it sends, how it reads the
    reply and which rows it writes."""

    services: GrantServices
    call: C
    context: ProviderContext
    provisional: bool = field(default=False, kw_only=True)  # a staged definition sent it, whichever reads
    # the staged definition couldn't read the reply, the one before could
    used_previous_definition: bool = field(default=False, init=False)
    provider_was_asked: bool = field(default=False, init=False)

    kind: ClassVar[AttemptKind]

    def __post_init__(self) -> None:
        self.provisional = self.provisional or self.context.provisional

    # --- what is sent ---------------------------------------------------------------------

    @abstractmethod
    async def request(self) -> SpendRequest | GrantResult:
        """What to ask for tokens with, or the result of another step. Raises Failure."""

    @property
    def credential(self) -> str:
        """Which of the connection's single-use credentials it is, where there are several."""
        return ""

    @property
    def token_valid(self) -> bool:
        """True while the connection has an access token that a second use of the credential might end."""
        return False

    def admission(self) -> AbstractAsyncContextManager[object]:
        """Until the provider may be sent one more request. Raises Failure."""
        return nullcontext()

    def count(self, ended: GrantResult | Failure | None, seconds: float) -> None:
        """Count how it ended; None: it was cut, or failed without a code."""

    # --- what its reply leads to ----------------------------------------------------------

    @abstractmethod
    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        """The tokens of a reply. Pure. Raises Failure."""

    @abstractmethod
    async def install(
        self, tx: Transaction, attempt: SingleUseAttempt, tokens: TokenSet, since: datetime
    ) -> GrantResult | None:
        """Install the tokens, obtained at `since`. None: their connection has ended."""

    @abstractmethod
    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        """Record a failure, and close the attempt if its outcome is known."""

    def judge(self, reply: RawReply, came_at: datetime) -> TokenSet:
        """The tokens of a reply. What a staged definition can't read, or calls a refusal in spite of a
        2xx status, is read with the definition before it: single-use tokens come once."""
        try:
            return self.read(self.context, reply, came_at)
        except Failure as failure:
            success = failure.code is ErrorCode.REPLY_UNREADABLE or 200 <= reply.status < 300
            if not self.context.provisional or not success:
                raise
            with suppress(Failure):
                tokens = self.read(self.context.with_previous_definition(), reply, came_at)
                self.used_previous_definition = True
                return tokens
            raise

    async def commit(self, attempt: SingleUseAttempt, tokens: TokenSet) -> GrantResult:
        """Compare-and-set until it holds: a revocation in between keeps its state."""
        services = self.services
        since = obtained_at(services.clock, attempt.row, tokens)
        result = await commit_with_retries(
            services.store, lambda tx: self.install(tx, attempt, tokens, since), attempt.keys
        )
        if result is None:
            return await revoke_orphaned_tokens(services, self.call, self.context, attempt.row, tokens)
        return result

    async def fail(
        self, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        services, call, row = self.services, self.call, attempt.row
        result = await commit_with_retries(
            services.store, lambda tx: self.record_failure(tx, attempt, failure, outcome)
        )
        return await revoked_if_ended(services, call, self.context, row, failure) or result


async def spend(
    context: ProviderContext, spend_with: Callable[[ProviderContext], S]
) -> tuple[S, GrantResult]:
    """Spend with each client secret and definition in turn, until one isn't refused: the last spend, and what
    the store holds afterwards. There is one, outside rotations and rollouts."""
    contexts = by_client_secret(context)
    for number, with_secret in enumerate(contexts):
        last = spend_with(with_secret)
        services = last.services
        if with_secret.provisional and await _left_open(services.store, with_secret):
            # the version before a staged one continues what the staged one has left open
            last = spend_with(with_secret.skipping_staged_definition())
        result = await _spend_once(last)
        if last.context.provisional and result.failure in _DEFINITION_FAULTS and not result.consent_over:
            last = spend_with(last.context.skipping_staged_definition())
            result = await _spend_once(last)
        await _count_for_rollout(services.store, last, result)
        if result.client_refused and number + 1 < len(contexts):
            continue
        if number == 1 and last.provider_was_asked and not result.client_refused and _accepts_client(result):
            await record_accepted_secret(services.store, services.clock, last.call, context)
        return last, result
    raise AssertionError("a context has a client")


async def _spend_once(spend: GrantSpend[Any]) -> GrantResult:
    """From the credential to the commit of its reply. What may be a staged definition's fault is a result."""
    ended: GrantResult | Failure | None = None
    try:
        request = await spend.request()
        if isinstance(request, GrantResult):
            return request
        single_use = spend.services.single_use
        async with spend.admission():
            connection, valid = spend.context.connection, spend.token_valid
            attempt = await single_use.open(
                spend.kind,
                connection,
                request.rules,
                token_valid=valid,
                credential=spend.credential,
                read=spend.context.tokens.keys,
            )
            spend.provider_was_asked = True
            began = time.perf_counter()
            try:
                section = asyncio.create_task(single_use.spend(attempt, request, spend))
                ended = await single_use.sections.run(attempt.row.id, section)
                return ended
            except Failure as failure:
                ended = failure
                raise
            finally:
                spend.count(ended, time.perf_counter() - began)
    except Failure as failure:
        if not may_be_definition_fault(failure, provisional=spend.context.provisional):
            raise
        return failed_grant_result(failure)


async def _left_open(store: Store, context: ProviderContext) -> bool:
    async with store.read() as tx:
        return await open_attempt(tx, context.connection) is not None


async def _count_for_rollout(store: Store, spend: GrantSpend[Any], result: GrantResult) -> None:
    """Count a new grant for or against the staged version; other results say nothing about it."""
    context = spend.context
    staged = context.skipped_definition or (context.definition if context.provisional else None)
    installed = result.failure is None and (result.generation or 0) > context.connection.generation
    if staged is not None and installed:
        good = context.skipped_definition is None and not spend.used_previous_definition
        async with store.write() as tx:
            await tx.definitions.count_refresh(staged, good=good)


def _accepts_client(result: GrantResult) -> bool:
    """True when the result shows that the provider took the client secret; no outage does."""
    return result.failure is None or FAILURES[result.failure].kind is FailureKind.RECONNECT_NEEDED
