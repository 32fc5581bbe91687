"""A provider's reply as the journal keeps it, and the write that comes before its commit."""

import json
import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import Message
from evergrant_server.crypto import KeyPurpose, SealingKey
from evergrant_server.journal import Journal, JournalEntry, JournalReservation
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.responses.raw_reply import RawReply

log = logging.getLogger("evergrant.protocol")

REPLY_PURPOSES = (KeyPurpose.LEASE, KeyPurpose.REFRESH)  # seal a reply, in the journal and in the store


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
