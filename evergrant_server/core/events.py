"""Events for receivers outside: which audit record is one, and what it says. Pure.

Which record is which event is one table here, so that nothing is told that isn't in the audit
log. Doesn't know who listens: that is `webhooks`.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import FAILURES, Code, Repairer
from evergrant_server.core.grant import Grant
from evergrant_server.core.ids import ConnectionId, EventId, Tenant


class EventType(StrEnum):
    """What a webhook may be told. Add, never rename."""

    CREATED = "connection.created"
    REFRESHED = "connection.refreshed"
    FAILING = "connection.failing"
    RECOVERED = "connection.recovered"
    NEEDS_REAUTH = "connection.needs_reauth"
    OUTCOME_UNKNOWN = "connection.outcome_unknown"
    EXPIRING = "connection.expiring"
    REVOKED = "connection.revoked"
    PING = "webhook.ping"  # asked for by hand, for one webhook


OF_CONNECTIONS = tuple(it for it in EventType if it is not EventType.PING)
BY_DEFAULT = tuple(it for it in OF_CONNECTIONS if it is not EventType.REFRESHED)  # hourly, each connection

_Detail = Mapping[str, Any]
_Judge = Callable[[_Detail], tuple[EventType, ...]]


def _always(*types: EventType) -> _Judge:
    return lambda detail: types


def _installed(detail: _Detail) -> tuple[EventType, ...]:
    """The first grant of a connection. A later consent is told as `recovered`, when it ended something."""
    return (EventType.CREATED,) if detail.get("generation") == 1 else ()


def _needs_reauth(detail: _Detail) -> tuple[EventType, ...]:
    """A lost answer is two facts: the subject must act, and the platform (or the line) lost a token.

    Who asks subjects to reconnect listens to the first alone and must not miss one; who counts
    losses listens to the second.
    """
    if detail.get("reason") == Code.OUTCOME_UNKNOWN:
        return (EventType.NEEDS_REAUTH, EventType.OUTCOME_UNKNOWN)
    return (EventType.NEEDS_REAUTH,)


EVENTS_OF: dict[AuditAction, _Judge] = {
    AuditAction.GRANT_INSTALLED: _installed,
    AuditAction.GRANT_REFRESHED: _always(EventType.REFRESHED),
    AuditAction.CONNECTION_FAILING: _always(EventType.FAILING),
    AuditAction.CONNECTION_RECOVERED: _always(EventType.RECOVERED),
    AuditAction.CONNECTION_EXPIRING: _always(EventType.EXPIRING),
    AuditAction.NEEDS_REAUTH: _needs_reauth,
    AuditAction.REVOKED_ELSEWHERE: _always(EventType.NEEDS_REAUTH),
    AuditAction.REVOKED: _always(EventType.REVOKED),
}


def events_of(action: AuditAction, detail: _Detail) -> tuple[EventType, ...]:
    """The events that an audit record is; none for most."""
    judge = EVENTS_OF.get(action)
    return () if judge is None else judge(detail)


class WebhookEvent(BaseModel):
    """One fact, and the bytes that are sent to whoever wants to know. No secret."""

    model_config = ConfigDict(frozen=True)

    tenant: Tenant
    id: EventId
    type: EventType
    connection_id: ConnectionId | None
    at: datetime
    body: str  # JSON, kept as text: what is signed is exactly this
    revision: int = 1


def body_of(type: EventType, entry: AuditEntry, connection: Connection, grant: Grant | None) -> str:
    """The event as it is sent: Standard Webhooks' type, timestamp and data."""
    reason = _reason(entry.detail.get("reason")) or connection.reason
    repairer = FAILURES[reason].repairer if reason else None
    asks = repairer is Repairer.SUBJECT and not connection.state.final
    data: dict[str, object] = {
        "tenant": connection.tenant,
        "connection_id": connection.id,
        "integration": connection.integration,
        "provider": connection.provider,
        "subject": connection.subject,
        "label": connection.label,
        "state": connection.state.value,
        "generation": connection.generation,
        "expires_at": _time(grant.expires_at if grant else None),
        "refresh_expires_at": _time(grant.refresh_expires_at if grant else None),
        "reason": reason.value if reason else None,
        "repairer": repairer.value if repairer else None,
        "reauthorize": f"/v1/connections/{connection.id}/reauthorize" if asks else None,
        "revocation": connection.revocation.value if connection.revocation else None,
    }
    return _body(type, entry.at, data)


def ping_body(tenant: Tenant, webhook: str, at: datetime) -> str:
    return _body(EventType.PING, at, {"tenant": tenant, "webhook": webhook})


def _body(type: EventType, at: datetime, data: Mapping[str, object]) -> str:
    return json.dumps({"type": type.value, "timestamp": _time(at), "data": data}, separators=(",", ":"))


def _reason(said: object) -> Code | None:
    """The code that a record gives; some give words of a person or a provider instead."""
    return Code(said) if isinstance(said, str) and said in set(Code) else None


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")
