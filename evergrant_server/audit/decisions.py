"""The hash of an agent's call, and its approval, used up in the transaction that records the call."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import rfc8785

from evergrant_server.audit.appending import append
from evergrant_server.core.agents.calls import AgentCall
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.decisions import CallApproval
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import call_approval_message
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.store import Transaction

_MOST_NAMES, _LONGEST_NAME = 20, 60  # in a detail
_INEXACT = 2**53  # from here on a double holds not every integer: 2^53 + 1 as a float is 2^53
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


async def use_call_approval(
    tx: Transaction, tenant: Tenant, call: AgentCall, context: RequestContext, now: datetime
) -> CallApproval:
    """Use up the approval of exactly this call, before it is made. Each approval is used once.

    The gateway awaits this in the transaction that records the call, and makes the call once that is
    committed. Raises Failure CALL_APPROVAL_REQUIRED; STORE_CONFLICT when another call came
    first; INVALID_REQUEST for params that aren't I-JSON.
    """
    approval = await tx.call_approvals.newest(tenant, await hash_of(tx, tenant, call))
    if approval is None or approval.app_id != call.agent or not approval.may_be_used(now):
        raise _approval_required(call)
    used = await tx.call_approvals.use(approval.used(now), expected=approval.revision)
    entry = AuditEntry(
        tenant=tenant,
        at=now,
        action=AuditAction.CALL_APPROVAL_USED,
        object=used.id,
        context=context,
        detail={"connection_id": used.connection_id, "call": used.name, "call_hash": used.call_hash},
    )
    await append(tx, entry)
    await tx.outbox.add(call_approval_message(used, context, now))
    return used


async def hash_of(tx: Transaction, tenant: Tenant, call: AgentCall) -> str:
    """The keyed hash of the call, with the account that the connection has now: an approval isn't for another
    one, to which its subject has consented since.

    Raises Failure INVALID_REQUEST for params that aren't I-JSON (RFC 7493).
    """
    connection = await tx.connections.get(tenant, call.connection)
    account = None if connection is None else await tx.account_identifiers.account_hash(connection)
    try:
        return call_hash(tx.sealer.ring, tenant, {**call.members(), "account": account})
    except ValueError:
        why = "Arguments need I-JSON: numbers below 2^53, whole characters, few levels."
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="arguments") from None


def _approval_required(call: AgentCall) -> Failure:
    """The failure, with the names of what is easily left out when an approval is asked for."""
    names = call.further_parts()
    why = f"{FAILURES[ErrorCode.CALL_APPROVAL_REQUIRED].meaning} Part of this one: {_listed(names)}."
    return Failure(ErrorCode.CALL_APPROVAL_REQUIRED, why if names else "")


def _listed(names: Sequence[str]) -> str:
    shown = [_UNPRINTABLE.sub("?", name)[:_LONGEST_NAME] for name in names[:_MOST_NAMES]]
    return ", ".join(shown) + (", …" if len(names) > _MOST_NAMES else "")


def call_hash(ring: KeyRing, tenant: str, members: Mapping[str, Any]) -> str:
    """The keyed hash of a call, in hex: HMAC-SHA256 over its canonical JSON (RFC 8785). Every role makes it.

    Raises ValueError for what isn't I-JSON: numbers that a double doesn't hold, half characters, or a
    nesting that is too deep.
    """
    try:
        _require_exact(members)
        canonical = rfc8785.dumps(dict(members)).decode()
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return ring.keyed_hash("agent call", tenant, canonical)


def _require_exact(value: object) -> None:
    """Raise ValueError for a float that may stand for more than one integer; rfc8785 does for integers."""
    if isinstance(value, float) and abs(value) >= _INEXACT:
        raise ValueError("has a number that a double doesn't hold")
    if isinstance(value, Mapping):
        for member in value.values():
            _require_exact(member)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for element in value:
            _require_exact(element)
