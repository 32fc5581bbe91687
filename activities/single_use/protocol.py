"""The protocol for single-use credentials: intent before, journal after, nothing in between is cut.

Every refresh token, authorization code and device code is spent here. The order is fixed
(docs/protocol.md): keys, journal reservation, intent, send, journal entry, commit, drop.
"""

import logging
from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import datetime
from typing import Generic, TypeVar

from activities.single_use.attempt import (
    REPLY_PURPOSES,
    JournaledReply,
    SendFence,
    SingleUseAttempt,
    SpendRequest,
    write_reply_to_journal,
)
from activities.single_use.intent import AttemptTracker, CriticalSections, commit_intent
from activities.support.temporal import later_now
from activities.support.transactions import log_words
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import AttemptId, new_id
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.core.single_use.attempt import (
    LIMITS,
    Attempt,
    AttemptKind,
    AttemptOutcome,
    TimeLimits,
    outcome_of_error,
)
from evergrant_server.crypto import KeyPurpose
from evergrant_server.journal import Journal
from evergrant_server.regions.serving_region import Region
from evergrant_server.store import NO_CONNECTION, KeyRows, Store, UnwrappedKeys
from evergrant_server.telemetry.logs import LogEvent, log_event, stack_frames
from providers.requests.sender import Sender, SendFailed
from providers.responses.error_mapping import UnreadableTokens
from providers.responses.raw_reply import RawReply

log = logging.getLogger("evergrant.protocol")

T = TypeVar("T")

_MAX_SET_ASIDE = 1000  # files of a quarter of a megabyte at most; doctor and a metric report them
_MAY_ISSUE_FURTHER_SLOTS = (AttemptKind.CODE_EXCHANGE, AttemptKind.LATE_TOKENS)


class Spend(ABC, Generic[T]):
    """What follows from a reply: the same for one that has just arrived and for a journaled one."""

    call: ConnectionCall  # kept with the reply
    provisional: bool = False  # sent with a staged definition, which the journal records

    @property
    def spends_credential(self) -> bool:
        """False: the same request may be sent again, with the same effect."""
        return True

    def sending(self) -> None:
        """Take note that the request is sent now."""

    def answered(self, answer: RawReply | SendFailed) -> None:
        """Take note of what an answer, or none, says about the provider."""

    @abstractmethod
    def judge(self, reply: RawReply, came_at: datetime) -> TokenSet:
        """The tokens of the reply. Pure. Raises Failure."""

    @abstractmethod
    async def commit(self, attempt: SingleUseAttempt, tokens: TokenSet) -> T:
        """Write the tokens and the end of the attempt in one transaction."""

    @abstractmethod
    async def fail(self, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None) -> T:
        """Write the failure. Without an `outcome` the credential may be spent: the attempt stays open."""


class SingleUseProtocol:
    """Opens attempts, spends their credentials and records what became of them."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        sections: CriticalSections,
        journal: Journal,
        sender: Sender,
        limits: TimeLimits = LIMITS,
        region: Region | None = None,
    ) -> None:
        """`region`: where another region has a standby of the database."""
        self._store = store
        self._clock = clock
        self._region = region
        self.sections = sections
        self._journal = journal
        self._sender = sender
        self._limits = limits
        self.tracker = AttemptTracker(clock, sections, journal, limits)

    async def open(
        self,
        kind: AttemptKind,
        connection: Connection,
        rules: RefreshRules,
        *,
        token_valid: bool,
        credential: str = "",
        read: KeyRows | None = None,
    ) -> SingleUseAttempt:
        """Unwrap the keys (of rows that were `read` with the credential, if they are there), reserve journal
        space, then commit the intent. Nothing was sent if it raises.

        Raises Failure REFRESH_PENDING while an earlier attempt has to be waited for,
        OUTCOME_UNKNOWN once the credential was sent as often as allowed, REPLY_UNREADABLE while
        its reply is kept for a definition that can read it, and KEY_UNAVAILABLE,
        JOURNAL_UNAVAILABLE or STORE_UNAVAILABLE; REGION_AWAY or REGION_FENCED of `Region.confirmed`.
        """
        keys = await self._reply_keys(kind, connection, read)
        began_at = seconds_since_boot()
        row = self._row(kind, connection, credential)
        reservation = await self._journal.in_thread(self._journal.reserve, row)
        try:
            async with self._store.write() as tx:
                # a key that was replaced after this look isn't destroyed while the attempt is open
                keys = await tx.sealer.current_keys(connection.tenant, keys)
                row = await commit_intent(
                    tx, row, connection.state, rules, self.tracker, token_valid=token_valid
                )
            if self._region is not None:
                await self._require_known_elsewhere(self._region, row)
        except BaseException as error:
            reservation.abandon(error)
            raise
        return SingleUseAttempt(row, keys, SendFence(reservation, self._clock, began_at, self._limits))

    async def _require_known_elsewhere(self, region: Region, row: Attempt) -> None:
        """The other region knows the intent before the credential is sent; else the intent is withdrawn."""
        try:
            await region.confirmed()
        except Failure:
            async with self._store.write() as tx:
                await tx.attempts.close(row, AttemptOutcome.NOT_SENT, self._clock.now())
            raise

    def _row(self, kind: AttemptKind, connection: Connection, credential: str) -> Attempt:
        return Attempt(
            tenant=connection.tenant,
            id=AttemptId(new_id("att")),
            connection_id=connection.id,
            integration_id=connection.integration_id,
            kind=kind,
            credential=credential,
            from_generation=connection.generation,
            journal_id=self._journal.id,
            opened_at=self._clock.now(),
            send_by=later_now(self._clock) + self._limits.send,
        )

    async def _reply_keys(
        self, kind: AttemptKind, connection: Connection, read: KeyRows | None
    ) -> UnwrappedKeys:
        """The keys that seal the reply, in the journal and in the store."""
        keys = read and read.unwrapped(connection.id, REPLY_PURPOSES)
        if keys is None:
            keys = await self._store.unwrap_keys(connection.tenant, connection.id, REPLY_PURPOSES)
        if kind not in _MAY_ISSUE_FURTHER_SLOTS:
            return keys
        # tokens for further slots are sealed with the tenant's intake key
        intake = await self._store.unwrap_keys(connection.tenant, NO_CONNECTION, (KeyPurpose.INTAKE,))
        return keys.merged_with(intake)

    async def spend(self, attempt: SingleUseAttempt, request: SpendRequest, spend: Spend[T]) -> T:
        """Send, journal, judge and commit: the reply is written to the journal before anything reads it.

        A critical section: `sections` runs it in a task that the activity awaits, and that neither its
        cancellation nor its time-outs nor a graceful shutdown cut.
        """
        fence = attempt.fence
        assert fence is not None
        try:
            try:
                spend.sending()
                reply = await self._sender.send(request.access, request.build(), before_send=fence.check)
            except SendFailed as failure:
                spend.answered(failure)
                outcome = None if failure.sent else AttemptOutcome.NOT_SENT
                return await spend.fail(attempt, failure, outcome)
            except Failure as failure:  # the definition and the request don't fit: nothing was sent
                return await spend.fail(attempt, _as_client_misconfigured(failure), AttemptOutcome.NOT_SENT)
            except Exception as unexpected:  # a byte may have left
                _log_unexpected(attempt, unexpected)
                return await spend.fail(attempt, Failure(ErrorCode.INTERNAL), None)
            came_at = self._clock.now()
            journaled = JournaledReply.for_request(spend.call, reply, came_at, provisional=spend.provisional)
            key = attempt.keys.current(KeyPurpose.REFRESH)
            entry = await write_reply_to_journal(self._journal, fence.reservation, key, journaled)
            spend.answered(reply)
            return await self.conclude(replace(attempt, entry=entry), journaled, spend)
        finally:
            if fence.reservation.is_open:
                await self._journal.in_thread(fence.reservation.release)
            await fence.record_double_send(self._store, attempt.row, spend.call)

    async def conclude(self, attempt: SingleUseAttempt, journaled: JournaledReply, spend: Spend[T]) -> T:
        """Judge a reply, commit what it says, then drop its journal entry. An exception keeps the entry.

        Raises Failure REPLY_UNREADABLE for a reply that was set aside and still can't be read.
        """
        try:
            tokens = spend.judge(journaled.reply, journaled.came_at)
        except Failure as failure:
            return await self._conclude_failure(attempt, journaled.reply, spend, failure)
        except Exception as unexpected:
            _log_unexpected(attempt, unexpected)
            raise Failure(ErrorCode.INTERNAL, "the reply can't be judged; the journal keeps it") from None
        result = await spend.commit(attempt, tokens)
        is_kept = self._region is not None and not await self._region.has_all()
        if attempt.entry is not None and not is_kept:
            attempt.entry.drop()  # no thread: it is one unlink
        return result

    async def _conclude_failure(
        self, attempt: SingleUseAttempt, reply: RawReply, spend: Spend[T], failure: Failure
    ) -> T:
        """Record a refusal. A 2xx reply that can't be read may hold the only valid token: its entry is
        set aside, and its credential is not sent again while the entry is there."""
        entry = attempt.entry
        unreadable = failure.code is ErrorCode.REPLY_UNREADABLE and 200 <= reply.status < 300
        if unreadable and entry is not None and entry.is_set_aside:
            raise failure
        kept = unreadable and spend.spends_credential and entry is not None
        set_aside = kept and self._journal.count_waiting()[1] < _MAX_SET_ASIDE
        refused = failure.kind is FailureKind.RECONNECT_NEEDED  # also when it came with status 200
        log_words(failure, attempt.row.connection_id)
        outcome = AttemptOutcome.REFUSED if refused else outcome_of_error(reply.status, failure.code)
        if set_aside and isinstance(failure, UnreadableTokens):
            outcome = AttemptOutcome.UNREAD
        result = await spend.fail(attempt, failure, outcome)
        if set_aside and entry is not None:
            await self._journal.in_thread(self._journal.set_aside, entry.path)
            code, about = failure.code, attempt.row.id
            log_event(log, logging.ERROR, LogEvent.JOURNAL_STUCK, failure.detail, code=code, object=about)
        elif entry is not None:
            entry.drop()
        return result


def _log_unexpected(attempt: SingleUseAttempt, error: Exception) -> None:
    """Log type and place alone: the exception's text may quote a secret."""
    place = f"{type(error).__name__} at {stack_frames(error)[-1]}"
    log_event(log, logging.ERROR, LogEvent.PROTOCOL_FAILED, place, object=attempt.row.id)


def _as_client_misconfigured(failure: Failure) -> Failure:
    """A definition that doesn't fit the request is the integration admin's to repair, not the caller's."""
    if failure.kind is not FailureKind.BAD_REQUEST:
        return failure
    return Failure(ErrorCode.CLIENT_REJECTED, failure.detail)
