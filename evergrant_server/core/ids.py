"""Typed, prefixed identifiers. A prefix says what an id names; a type stops mixing them up."""

import hashlib
import re
import secrets
from typing import NewType

Tenant = NewType("Tenant", str)
ConnectionId = NewType("ConnectionId", str)
IntegrationId = NewType("IntegrationId", str)
AppId = NewType("AppId", str)
KeyId = NewType("KeyId", str)
PermitId = NewType("PermitId", str)
ConsentId = NewType("ConsentId", str)
AttemptId = NewType("AttemptId", str)
OutboxId = NewType("OutboxId", str)
ExportId = NewType("ExportId", str)
WebhookId = NewType("WebhookId", str)
EventId = NewType("EventId", str)
DeliveryId = NewType("DeliveryId", str)
ReceiverId = NewType("ReceiverId", str)
DefinitionId = NewType("DefinitionId", str)

PREFIXES = {
    "con": ConnectionId,
    "int": IntegrationId,
    "app": AppId,
    "key": KeyId,
    "per": PermitId,
    "cns": ConsentId,
    "att": AttemptId,
    "out": OutboxId,
    "exp": ExportId,
    "whk": WebhookId,
    "evt": EventId,
    "dlv": DeliveryId,
    "rcv": ReceiverId,
    "def": DefinitionId,
}

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
_LENGTH = 22  # 110 bits
_SHAPE = re.compile(rf"^(?:{'|'.join(PREFIXES)})_[{_ALPHABET}]{{{_LENGTH}}}\Z")
_SLUG = re.compile(r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")


def new_id(prefix: str) -> str:
    """A new random id such as `con_…`. Raises ValueError for an unknown prefix."""
    if prefix not in PREFIXES:
        raise ValueError(f"no id has the prefix {prefix!r}")
    return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def derived_id(prefix: str, *parts: str | int) -> str:
    """The id with this prefix that these parts always give."""
    if prefix not in PREFIXES:
        raise ValueError(f"no id has the prefix {prefix!r}")
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return f"{prefix}_" + "".join(_ALPHABET[byte % 32] for byte in digest[:_LENGTH])


def is_id(value: str, prefix: str) -> bool:
    """True when `value` has the shape of an id with this prefix."""
    return bool(_SHAPE.match(value)) and value.startswith(f"{prefix}_")


def is_slug(value: str) -> bool:
    """True for names of tenants, integrations, apps and permits: a DNS label in lower case."""
    return bool(_SLUG.match(value))
