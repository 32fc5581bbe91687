"""The control request: one refresh token that can't exist, to compare a refusal's answer with (ADR 0093)."""

from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.control_request import comparable_answer
from providers.responses.raw_reply import RawReply


def answer_of(reply: RawReply, token: Secret | None) -> str:
    """What a refusal is compared by; `token` was sent, and may be echoed."""
    sent = () if token is None else (token.reveal(),)
    return comparable_answer(reply.status, reply.headers.get("content-type", ""), reply.body, sent)
