"""Audit records as events of OCSF 1.8.

The first word of an action decides the class, the last one the activity: a new action has a class by its
subject. An activity that its class doesn't know is 99, "Other", and named as the action's verb (OCSF,
`activity_id`). `raw_data` is the record's body, byte for byte; `metadata.uid` is its place, by which a
receiver ignores what comes twice.
"""

import json
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from evergrant_server import __version__
from evergrant_server.audit.records import StoredRecord
from evergrant_server.core.audit import AuditAction, AuditRecord

VERSION = "1.8.0"
CONTENT_TYPE = "application/json"


class EventClass(IntEnum):
    """The classes of OCSF that audit records have, with their numbers."""

    AUTHENTICATION = 3002
    ENTITY_MANAGEMENT = 3004
    USER_ACCESS = 3005
    API_ACTIVITY = 6003

    @property
    def category(self) -> int:
        return self // 1000


class Mapped(NamedTuple):
    """What an action is in OCSF."""

    event_class: EventClass
    activity: int
    failed: bool


OTHER = 99
_CLASSES: Mapping[EventClass, frozenset[str]] = {
    EventClass.API_ACTIVITY: frozenset({"lease", "tokens", "proxy", "callback", "question"}),
    EventClass.USER_ACCESS: frozenset(
        {
            *("permit", "access", "approval", "call_approval", "consent", "authorization"),
            *("delegation", "delegation_rule"),
        }
    ),
    EventClass.AUTHENTICATION: frozenset(
        {"token", "token_family", "resource_token", "subject", "person", "session"}
    ),
    EventClass.ENTITY_MANAGEMENT: frozenset(
        {
            *("connection", "connections", "grant", "history", "security_event", "security_events"),
            *("integration", "definition", "tenant", "erasure", "legal_hold", "app", "key", "keys"),
            *("credential", "trusted_issuer", "admin_login", "client_login", "oauth_client", "webhook"),
            *("authority", "audit", "audit_stream", "incident", "bulk", "detection"),
            *("offboarding", "offboarding_rule", "directory_user", "campaign", "backup", "region"),
        }
    ),
}
_CLASS_OF_WORD = {word: event_class for event_class, words in _CLASSES.items() for word in words}
_CLASS_OF_ACTION = {AuditAction.KEY_LOGGED_IN: EventClass.AUTHENTICATION}  # whose first word says another
_ACTIVITIES: Mapping[EventClass, Mapping[str, int]] = {
    EventClass.API_ACTIVITY: {"issued": 2, "refused": 2, "bulk_read": 2, "asked": 2},
    EventClass.USER_ACCESS: {
        **dict.fromkeys(
            ("put", "given", "approved", "issued", "granted", "confirmed"), 1
        ),  # Assign Privileges
        **dict.fromkeys(("deleted", "ended", "expired", "stopped", "used"), 2),  # Revoke Privileges
    },
    EventClass.AUTHENTICATION: {
        **dict.fromkeys(("logged_in", "break_glass"), 1),  # Logon
        **dict.fromkeys(("ended", "revoked"), 2),  # Logoff
        **dict.fromkeys(("issued", "begun"), 3),  # Authentication Ticket
        **dict.fromkeys(("refreshed", "replayed"), 5),  # Service Ticket Renew
    },
    EventClass.ENTITY_MANAGEMENT: {
        **dict.fromkeys(("created", "imported", "registered", "discovered", "proposed", "installed"), 1),
        **dict.fromkeys(("exported", "connections_exported", "checked", "tested", "asked"), 2),  # Read
        **dict.fromkeys(("put", "refreshed", "replaced", "rotated", "secret_rotated"), 3),  # Update
        **dict.fromkeys(("deleted", "erased", "revoked"), 4),  # Delete
        "opened": 1,
        "enabled": 8,
        "disabled": 9,
        "activated": 10,
        "paused": 12,
    },
}
_OF_REFUSED = {EventClass.AUTHENTICATION: {"token": 3, "subject": 1, "person": 1}}  # what was tried
_OF_METHOD = {"POST": 1, "GET": 2, "HEAD": 2, "OPTIONS": 2, "PUT": 3, "PATCH": 3, "DELETE": 4}
_FAILED = frozenset(
    {
        *("refused", "failed", "denied", "mismatch", "broken", "replayed", "lost", "unconfirmed"),
        *("rejected", "failing", "reauth"),
    }
)
_ALARMS = frozenset(
    {
        *(AuditAction.BULK_READ, AuditAction.DETECTED, AuditAction.AUTHORITY_BROKEN, AuditAction.SHARD_LOST),
        *(AuditAction.TOKEN_FAMILY_REPLAYED, AuditAction.BREAK_GLASS, AuditAction.SUBJECT_MISMATCH),
        *(AuditAction.ACCOUNT_MISMATCH, AuditAction.SENT_TWICE),
    }
)
_INFORMATIONAL, _MEDIUM, _HIGH = 1, 3, 4
_SUCCESS, _FAILURE = 1, 2
_PRODUCT = {"name": "Evergrant", "vendor_name": "Evergrant", "version": __version__}


def encode_ocsf(records: Sequence[StoredRecord]) -> tuple[bytes, str]:
    return json.dumps(
        [ocsf_event(stored) for stored in records], separators=(",", ":")
    ).encode(), CONTENT_TYPE


def class_of(action: AuditAction) -> EventClass:
    """Raises KeyError for an action whose first word has no class yet."""
    return _CLASS_OF_ACTION.get(action) or _CLASS_OF_WORD[action.partition(".")[0]]


def mapped(action: AuditAction, detail: Mapping[str, Any] = {}) -> Mapped:
    """What a record of this action is. The method in `detail` decides what a call through the gateway did."""
    event_class = class_of(action)
    subject, _, verb = action.partition(".")
    failed = verb.rpartition("_")[2] in _FAILED
    activity = _ACTIVITIES[event_class].get(verb)
    if verb == "refused":
        activity = _OF_REFUSED.get(event_class, {}).get(subject, activity)
    if subject == "proxy":
        activity = _OF_METHOD.get(str(detail.get("method", "")).upper())
    return Mapped(event_class, OTHER if activity is None else activity, failed)


def severity_of(action: AuditAction) -> int:
    if action in _ALARMS or action.startswith("detection."):
        return _HIGH
    return _MEDIUM if mapped(action).failed else _INFORMATIONAL


def ocsf_event(stored: StoredRecord) -> dict[str, Any]:
    record = stored.record
    meaning = mapped(record.action, record.detail)
    event: dict[str, Any] = {
        "category_uid": meaning.event_class.category,
        "class_uid": meaning.event_class.value,
        "activity_id": meaning.activity,
        "type_uid": meaning.event_class * 100 + meaning.activity,
        "severity_id": severity_of(record.action),
        "status_id": _FAILURE if meaning.failed else _SUCCESS,
        "time": int(record.at.timestamp() * 1000),
        "message": f"{record.action} {record.object}".strip(),
        "metadata": _metadata(stored),
        "actor": _actor(record),
        "unmapped": dict(record.detail),
        **_OF_CLASS[meaning.event_class](record),
    }
    if meaning.activity == OTHER:
        event["activity_name"] = record.action.partition(".")[2]
    if stored.body is not None:
        event["raw_data"] = stored.body
    return event


def _metadata(stored: StoredRecord) -> dict[str, Any]:
    record = stored.record
    metadata: dict[str, Any] = {
        "version": VERSION,
        "product": _PRODUCT,
        "uid": stored.place,
        "event_code": record.action.value,
        "log_name": record.shard,
        "sequence": record.seq,
        "tenant_uid": record.tenant,
        "original_time": record.at.isoformat(),
    }
    if record.context.trace_id:
        metadata["correlation_uid"] = record.context.trace_id
    return metadata


def _actor(record: AuditRecord) -> dict[str, Any]:
    """Who requested it: an app by its name; people, the operator and Evergrant itself as users."""
    kind, _, name = record.context.by.partition(":")
    if kind == "app" and name:
        return {"app_name": name}
    return {"user": {"name": record.context.by or "unknown"}}


def _of_api_activity(record: AuditRecord) -> dict[str, Any]:
    """`src_endpoint` names the caller as Evergrant knows it: records have no address."""
    return {
        "api": {"operation": record.action.value, "service": {"name": "Evergrant"}},
        "src_endpoint": {"name": record.context.by or "unknown"},
        "resources": [_resource(record)],
    }


def _of_user_access(record: AuditRecord) -> dict[str, Any]:
    """`user` is who gets or loses it, `privileges` what: scopes, actions, or the name of a permit."""
    detail = record.detail
    named = next((detail[key] for key in ("scopes", "actions") if detail.get(key)), None)
    privileges = [str(name) for name in named] if isinstance(named, list | tuple) else []  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]  # JSON's values
    whose = next((detail[key] for key in ("app", "app_id", "subject") if detail.get(key)), record.object)
    return {
        "user": {"uid": str(whose) or "unknown"},
        "privileges": privileges or [str(detail.get("permit") or record.action.partition(".")[0])],
        "resources": [_resource(record)],
    }


def _of_authentication(record: AuditRecord) -> dict[str, Any]:
    return {"user": {"uid": record.object or record.context.by}, "service": {"name": "Evergrant"}}


def _of_entity_management(record: AuditRecord) -> dict[str, Any]:
    return {"entity": {"type_id": OTHER, **_resource(record)}}


def _resource(record: AuditRecord) -> dict[str, Any]:
    return {"uid": record.object or "unknown", "type": record.action.partition(".")[0]}


_OF_CLASS = {
    EventClass.API_ACTIVITY: _of_api_activity,
    EventClass.USER_ACCESS: _of_user_access,
    EventClass.AUTHENTICATION: _of_authentication,
    EventClass.ENTITY_MANAGEMENT: _of_entity_management,
}
