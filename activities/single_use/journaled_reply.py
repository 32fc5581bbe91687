"""A provider's answer as the journal keeps it: the reply, and the order it answers. Sealed as one value."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import ConnectionCall
from providers.responses.raw_reply import RawReply


@dataclass(frozen=True)
class JournaledReply:
    """Raw, so that a mistake in judging it loses nothing. It may hold tokens: it never shows itself."""

    request: dict[str, Any] = field(repr=False)  # the activity's input, to be read by who wrote it
    came_at: datetime
    reply: RawReply
    provisional: bool = False  # a staged definition asked: a refusal isn't believed, whoever reads it

    @classmethod
    def for_request(
        cls, order: ConnectionCall, reply: RawReply, came_at: datetime, *, provisional: bool = False
    ) -> "JournaledReply":
        return cls(order.model_dump(mode="json"), came_at, reply, provisional)

    def pack(self) -> bytes:
        """One line of JSON, then the body as it came."""
        facts = {
            "order": self.request,
            "came_at": self.came_at.isoformat(),
            "status": self.reply.status,
            "headers": self.reply.headers,
            "provisional": self.provisional,
        }
        return json.dumps(facts).encode() + b"\n" + self.reply.body

    @classmethod
    def unpack(cls, packed: bytes) -> "JournaledReply":
        """Raises Failure SEAL_BROKEN for what `packed` didn't write."""
        first, _, body = packed.partition(b"\n")
        try:
            facts = json.loads(first)
            reply = RawReply(facts["status"], facts["headers"], body)
            came_at = datetime.fromisoformat(facts["came_at"])
            return cls(facts["order"], came_at, reply, facts.get("provisional", False))
        except (ValueError, KeyError, TypeError):
            raise Failure(ErrorCode.SEAL_BROKEN, "the entry holds no answer") from None
