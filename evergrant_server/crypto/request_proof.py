"""Proofs of who requested it. One who can only write to Temporal's namespace can't make any.

A proof is an HMAC (RFC 2104) over the workflow that the request is for, the name of the message, the
requester, the trace and the second. It is no secret: copied into another message or to another workflow it
proves nothing. Each role of a process has a key of its own, so a gateway proves what a gateway says and
nothing else (ADR 0071).
"""

import hashlib
import hmac
import re
from datetime import datetime, timedelta

from evergrant_server.core.messages.base import CLAIMED, RequestContext
from evergrant_server.core.messages.names import UpdateName
from evergrant_server.core.outbox import OutboxKind
from evergrant_server.core.text import is_storable_text
from evergrant_server.crypto.envelope import encode_parts
from evergrant_server.crypto.keyring import KeyRing, Role

# The messages that a gateway's process sends, for apps that call it.
GATEWAY_MESSAGES = frozenset(
    {
        UpdateName.ENSURE_FRESH.value,
        OutboxKind.START_WORKFLOW.value,
        OutboxKind.WAKE_WEBHOOK.value,
        OutboxKind.ADVANCE_CALL_APPROVAL.value,
    }
)

_PROOF = re.compile(r"(?P<message>[A-Za-z_]+) (?P<second>[0-9]{1,12}) (?P<mac>[0-9a-f]{32})\Z")
_TRACE_ID = re.compile(r"[0-9a-f]{32}\Z")
_LONGEST_CLAIM = 100  # characters of a name that nothing proves


def proof_key(ring: KeyRing, role: Role) -> bytes:
    """The key by which processes of this role prove that they have said something."""
    return ring.derive(f"request proof {role}")


def roles_that_say(message: str) -> tuple[Role, ...]:
    """The roles whose proof counts for a message of this name."""
    return tuple(role for role in Role if role is not Role.GATEWAY or message in GATEWAY_MESSAGES)


def prove_request(
    ring: KeyRing, context: RequestContext, workflow_id: str, message: str, at: datetime
) -> RequestContext:
    """The context with a proof for `message` (a signal, an update, or what starts a run) to this workflow.

    Raises ValueError for a message that this process's role doesn't send.
    """
    if ring.role not in roles_that_say(message):
        raise ValueError(f"a {ring.role} sends no {message}")
    second = int(at.timestamp())
    mac = _mac(ring, ring.role, context, workflow_id, message, second)
    return context.__replace__(proof=f"{message} {second} {mac}")


def proven_message(
    ring: KeyRing, context: RequestContext, workflow_id: str, now: datetime, longest: timedelta
) -> str | None:
    """The message that the context's proof is for; None when it proves nothing to this workflow.

    `longest` is how far its second may be from now, either way.
    """
    proof = _PROOF.match(context.proof)
    if proof is None or not is_storable_text(context.by + context.trace_id):
        return None
    message, second = proof["message"], int(proof["second"])
    macs = (_mac(ring, role, context, workflow_id, message, second) for role in roles_that_say(message))
    if not any(hmac.compare_digest(proof["mac"], mac) for mac in macs):
        return None
    return message if abs(now.timestamp() - second) <= longest.total_seconds() else None


def as_claimed(context: RequestContext) -> RequestContext:
    """The context as it is recorded when nothing proves who requested it, in bounded text."""
    by = context.by.removeprefix(CLAIMED)[:_LONGEST_CLAIM]
    trace_id = context.trace_id if _TRACE_ID.match(context.trace_id) else ""
    return RequestContext(by=CLAIMED + (by if is_storable_text(by) else "unreadable"), trace_id=trace_id)


def _mac(
    ring: KeyRing, role: Role, context: RequestContext, workflow_id: str, message: str, second: int
) -> str:
    parts = encode_parts(workflow_id, message, context.by, context.trace_id, second)
    return hmac.new(proof_key(ring, role), parts, hashlib.sha256).hexdigest()[:32]
