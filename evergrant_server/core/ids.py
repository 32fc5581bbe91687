"""Typed, prefixed identifiers of rows; those of workflows are in `core.messages.names`.

A prefix says what an id names; a type stops mixing them up.
"""

import hashlib
import re
import secrets
from typing import NewType

from evergrant_server.core.model import FrozenModel

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
ApprovalId = NewType("ApprovalId", str)
ReplacedGrantId = NewType("ReplacedGrantId", str)
CredentialId = NewType("CredentialId", KeyId)  # of what a request is authenticated by, as an API key
TokenId = NewType("TokenId", str)
TrustedIssuerId = NewType("TrustedIssuerId", str)
AccessRequestId = NewType("AccessRequestId", str)
AdminLoginId = NewType("AdminLoginId", str)
PersonLoginId = NewType("PersonLoginId", str)
SessionId = NewType("SessionId", str)
PersonId = NewType("PersonId", str)
CallApprovalId = NewType("CallApprovalId", str)
AgentStopId = NewType("AgentStopId", str)
OAuthClientId = NewType("OAuthClientId", str)
AuthorizationCodeId = NewType("AuthorizationCodeId", str)
TokenFamilyId = NewType("TokenFamilyId", str)
RefreshTokenId = NewType("RefreshTokenId", str)
AccessTokenId = NewType("AccessTokenId", str)
ClientLoginId = NewType("ClientLoginId", str)
AuthorizationRequestId = NewType("AuthorizationRequestId", str)
ClientConsentId = NewType("ClientConsentId", str)
DelegationId = NewType("DelegationId", str)
DelegationRuleId = NewType("DelegationRuleId", str)
ErasureId = NewType("ErasureId", str)
LegalHoldId = NewType("LegalHoldId", str)
KeyRotationId = NewType("KeyRotationId", str)
QuestionId = NewType("QuestionId", str)
DetectionId = NewType("DetectionId", str)
IncidentId = NewType("IncidentId", str)
StreamId = NewType("StreamId", str)
BulkId = NewType("BulkId", str)
DirectoryUserId = NewType("DirectoryUserId", str)
OffboardingRuleId = NewType("OffboardingRuleId", str)
DeviceAuthorizationId = NewType("DeviceAuthorizationId", str)
ImportId = NewType("ImportId", str)
MoveId = NewType("MoveId", str)

# in the order of the types above
PREFIXES = (
    "con",
    "int",
    "app",
    "key",
    "per",
    "cns",
    "att",
    "out",
    "exp",
    "whk",
    "evt",
    "dlv",
    "rcv",
    "def",
    "apr",
    "rpl",
    "crd",
    "tok",
    "iss",
    "req",
    "alg",
    "pln",
    "ses",
    "psn",
    "cap",
    "stp",
    "cli",
    "cod",
    "fam",
    "rtk",
    "atk",
    "clg",
    "azr",
    "ccn",
    "dlg",
    "dru",
    "era",
    "hld",
    "rot",
    "qst",
    "det",
    "inc",
    "stm",
    "blk",
    "usr",
    "ofr",
    "dva",
    "imp",
    "mov",
)


class TenantRow(FrozenModel):
    """A tenant's row of the store. `revision` counts its changes, for compare-and-set."""

    tenant: Tenant
    revision: int = 1


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
_LENGTH = 22  # 110 bits
_TO_ALPHABET = (_ALPHABET * 8).encode()  # each letter for 8 of the 256 bytes
_SHAPE = re.compile(rf"^(?:{'|'.join(PREFIXES)})_[{_ALPHABET}]{{{_LENGTH}}}\Z")
_SLUG = re.compile(r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")


def new_id(prefix: str) -> str:
    """A new random id such as `con_…`. Raises ValueError for an unknown prefix."""
    _require_prefix(prefix)
    return f"{prefix}_" + secrets.token_bytes(_LENGTH).translate(_TO_ALPHABET).decode()


def derived_id(prefix: str, *parts: str | int) -> str:
    """The id with this prefix that these parts always give."""
    _require_prefix(prefix)
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return f"{prefix}_" + "".join(_ALPHABET[byte % 32] for byte in digest[:_LENGTH])


def _require_prefix(prefix: str) -> None:
    if prefix not in PREFIXES:
        raise ValueError(f"no id has the prefix {prefix!r}")


def is_id(value: str, prefix: str) -> bool:
    """True when `value` has the shape of an id with this prefix."""
    return bool(_SHAPE.match(value)) and value.startswith(f"{prefix}_")


def has_id_shape(value: str) -> bool:
    """True when `value` has the shape of an id with any prefix."""
    return bool(_SHAPE.match(value))


def is_slug(value: str) -> bool:
    """True for names of tenants, integrations, apps and permits: a DNS label in lower case."""
    return bool(_SLUG.match(value))
