"""A provider's answer as the journal keeps it: the reply, and the order it answers. Sealed as one value."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import Call
from providers.reply import RawReply


@dataclass(frozen=True)
class Answer:
    """Raw, so that a mistake in judging it loses nothing. It may hold tokens: it never shows itself."""

    order: dict[str, Any] = field(repr=False)  # the activity's input, to be read by who wrote it
    came_at: datetime
    reply: RawReply
    provisional: bool = False  # a staged definition asked: a refusal isn't believed, whoever reads it

    @classmethod
    def to(cls, order: Call, reply: RawReply, came_at: datetime, *, provisional: bool = False) -> "Answer":
        return cls(order.model_dump(mode="json"), came_at, reply, provisional)

    def packed(self) -> bytes:
        """One line of JSON, then the body as it came."""
        facts = {
            "order": self.order,
            "came_at": self.came_at.isoformat(),
            "status": self.reply.status,
            "headers": self.reply.headers,
            "provisional": self.provisional,
        }
        return json.dumps(facts).encode() + b"\n" + self.reply.body

    @classmethod
    def unpacked(cls, packed: bytes) -> "Answer":
        """Raises Failure SEAL_BROKEN for what `packed` didn't write."""
        first, _, body = packed.partition(b"\n")
        try:
            facts = json.loads(first)
            reply = RawReply(facts["status"], facts["headers"], body)
            came_at = datetime.fromisoformat(facts["came_at"])
            return cls(facts["order"], came_at, reply, facts.get("provisional", False))
        except (ValueError, KeyError, TypeError):
            raise Failure(Code.SEAL_BROKEN, "the entry holds no answer") from None
