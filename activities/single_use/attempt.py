"""One use of a single-use credential: what is sent, the last check before it leaves, and its journaled reply.

A process can be stopped between the check of `send_by` and the write of the bytes; no client
can exclude that. On one host a fence does; across hosts it is measured and counted. An earlier use without an
answer is found before, when the next one's `intent` is committed.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from activities.support.transactions import append_audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.core.messages.base import Message
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome, TimeLimits
from evergrant_server.crypto import KeyPurpose, SealingKey
from evergrant_server.journal import Journal, JournalEntry, JournalReservation
from evergrant_server.store import Store, UnwrappedKeys
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.requests.request_format import ProviderAccess, ProviderRequest
from providers.responses.raw_reply import RawReply

log = logging.getLogger("evergrant.protocol")

REPLY_PURPOSES = (KeyPurpose.LEASE, KeyPurpose.REFRESH)  # seal a reply, in the journal and in the store
_TAKEN_OVER_OUTCOMES = (AttemptOutcome.SUPERSEDED, AttemptOutcome.INSTALLED_LATE)


class SendFence:
    """Lets the bytes of one attempt leave until `send_by`.

    Counted in seconds since boot, so that no clock change moves it, and from before the intent,
    as other workers count it: a process that is stopped while it commits finds out here.
    """

    def __init__(
        self, reservation: JournalReservation, clock: Clock, began_at: float, limits: TimeLimits
    ) -> None:
        self.reservation = reservation
        self._clock = clock
        self._deadline = began_at + limits.send.total_seconds()
        self._retry_after_s = limits.poll_interval.total_seconds()
        self.checked_at: datetime | None = None
        self.written_at: datetime | None = None  # None: no byte is known to have left

    def check(self) -> Callable[[], None]:
        """The attempt's `before_send`: call it just before the bytes are written, and what it returns
        once they are.

        Raises Failure REFRESH_PENDING, and nothing is sent, when it is too late or another worker
        of this host has taken over.
        """
        if not self.reservation.begin_send():
            raise self._pending("another worker of this host took over")
        checked = seconds_since_boot()
        if checked > self._deadline:
            self.reservation.end_send()
            raise self._pending("too late to send")
        self.checked_at = self._clock.now()

        def written() -> None:
            self.written_at = self._clock.now()
            self.reservation.end_send()
            metrics.record_send_window(seconds_since_boot() - checked)

        return written

    async def record_double_send(self, store: Store, attempt: Attempt, request: ConnectionCall) -> None:
        """Record a use that continued after another worker's intent for the same credential."""
        if self.checked_at is None or seconds_since_boot() <= self._deadline:
            return
        try:
            async with store.read() as tx:
                row = await tx.attempts.get(attempt.tenant, attempt.id)
            if row is None or row.outcome not in _TAKEN_OVER_OUTCOMES or row.closed_at is None:
                return
            written_at = self.written_at or self._clock.now()
            overlapped = written_at > row.closed_at  # the moment of the other intent
            detail = {
                "attempt": row.id,
                "from_generation": row.from_generation,
                "checked_at": self.checked_at.isoformat(),
                "written_at": written_at.isoformat(),
                "taken_over_at": row.closed_at.isoformat(),
                "overlapped": overlapped,
            }
            async with store.write() as tx:
                await append_audit(tx, request, AuditAction.SENT_TWICE, self._clock.now(), **detail)
        except Failure:
            return  # the store is unavailable: the attempt's row still shows it
        metrics.count_double_send("overlapped" if overlapped else "one after the other")

    def _pending(self, why: str) -> Failure:
        return Failure(ErrorCode.REFRESH_PENDING, why, retry_after=self._retry_after_s)


@dataclass(frozen=True)
class SingleUseAttempt:
    """One use of a credential: its intent is committed and the keys for its reply are unwrapped."""

    row: Attempt
    keys: UnwrappedKeys
    fence: SendFence | None = None  # None: the reply came from a journal
    entry: JournalEntry | None = None  # the reply, once a journal holds it


class SpendRequest(ABC):
    """One request that spends a credential; `rules` say whether that may be sent twice."""

    access: ProviderAccess
    rules: RefreshRules

    @abstractmethod
    def build(self) -> ProviderRequest:
        """The request in the provider's format. Pure. Raises Failure when the definition has no such one."""


@dataclass(frozen=True)
class JournaledReply:
    """The raw reply, so that a bug in judging it loses nothing. It may hold tokens: `repr` hides it."""

    request: dict[str, Any] = field(repr=False)  # the activity's input
    came_at: datetime
    reply: RawReply
    provisional: bool = False  # sent with a staged definition: a refusal ends no grant

    @classmethod
    def for_request(
        cls, request: Message, reply: RawReply, came_at: datetime, *, provisional: bool = False
    ) -> "JournaledReply":
        return cls(request.model_dump(mode="json"), came_at, reply, provisional)

    def pack(self) -> bytes:
        """One line of JSON, then the body as it came."""
        header = {
            "request": self.request,
            "came_at": self.came_at.isoformat(),
            "status": self.reply.status,
            "headers": self.reply.headers,
            "provisional": self.provisional,
        }
        return json.dumps(header).encode() + b"\n" + self.reply.body

    @classmethod
    def unpack(cls, packed: bytes) -> "JournaledReply":
        """Raises Failure SEAL_BROKEN for bytes that `pack` didn't write."""
        first, _, body = packed.partition(b"\n")
        try:
            header = json.loads(first)
            reply = RawReply(header["status"], header["headers"], body)
            came_at = datetime.fromisoformat(header["came_at"])
            return cls(header["request"], came_at, reply, header["provisional"])
        except (ValueError, KeyError, TypeError):
            raise Failure(ErrorCode.SEAL_BROKEN, "the entry holds no reply") from None


async def write_reply_to_journal(
    journal: Journal, reservation: JournalReservation, key: SealingKey, journaled: JournaledReply
) -> JournalEntry | None:
    """Write a reply to the journal before anything else reads it. None: the disk broke since the
    reservation, which is logged and doesn't stop the commit."""
    try:
        return await journal.in_thread(reservation.write_entry, key, journaled.pack())
    except OSError as error:
        why = error.strerror or type(error).__name__
        log_event(log, logging.ERROR, LogEvent.JOURNAL_FAILED, why, object=reservation.header.attempt_id)
        return None
