"""Events for webhooks: which audit record is which event, and the event's body. Pure.

One table maps records to events, so that every event is in the audit log. Subscriptions are in
`webhooks`.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import FAILURES, ErrorCode, Repairer
from evergrant_server.core.ids import ConnectionId, EventId, Tenant, TenantRow
from evergrant_server.core.model import CheckedModel


class EventType(StrEnum):
    """The events a webhook can subscribe to. Add, never rename."""

    CREATED = "connection.created"
    REFRESHED = "connection.refreshed"
    FAILING = "connection.failing"
    RECOVERED = "connection.recovered"
    NEEDS_REAUTH = "connection.needs_reauth"
    OUTCOME_UNKNOWN = "connection.outcome_unknown"
    EXPIRING = "connection.expiring"
    REVOKED = "connection.revoked"
    BULK_READ = "tokens.bulk_read"  # about an app
    ACCESS_REQUESTED = "access.requested"  # about an app, like all that begin so
    ACCESS_REMINDED = "access.reminded"
    ACCESS_APPROVED = "access.approved"
    ACCESS_DENIED = "access.denied"
    ACCESS_EXPIRED = "access.expired"
    ACCESS_ENDED = "access.ended"
    CALL_APPROVAL_REQUESTED = "call_approval.requested"  # about an agent, like all that begin so
    CALL_APPROVAL_REMINDED = "call_approval.reminded"
    CALL_APPROVAL_ESCALATED = "call_approval.escalated"
    CALL_APPROVAL_APPROVED = "call_approval.approved"
    CALL_APPROVAL_DENIED = "call_approval.denied"
    CALL_APPROVAL_EXPIRED = "call_approval.expired"
    AGENT_STOPPED = "agent.stopped"
    TOKEN_FAMILY_REPLAYED = "token_family.replayed"  # about what a subject authorized
    BREAK_GLASS = "session.break_glass"  # about a person
    DETECTED = "detection.raised"  # about an app or a connection
    TENANT_DISABLED = "tenant.disabled"
    TENANT_ENABLED = "tenant.enabled"
    ACCOUNT_MISMATCH = "connection.account_mismatch"
    ACCOUNT_SHARED = "connection.account_shared"
    INCIDENT_OPENED = "incident.opened"  # about what is stopped and replaced in a tenant
    INCIDENT_ENDED = "incident.ended"
    OFFBOARDING_BEGUN = "offboarding.begun"  # about a person who leaves, whom it doesn't name
    OFFBOARDING_PLANNED = "offboarding.planned"
    OFFBOARDING_UNDONE = "offboarding.undone"
    OFFBOARDING_ENDED = "offboarding.ended"
    CAMPAIGN_BEGUN = "campaign.begun"  # about an integration that has another client
    CAMPAIGN_UNDONE = "campaign.undone"
    CAMPAIGN_ENDED = "campaign.ended"
    PING = "webhook.ping"  # an admin tests one webhook


CONNECTION_EVENTS = tuple(type_ for type_ in EventType if type_.startswith("connection."))
# about no connection: for webhooks of every integration
APP_EVENTS = (
    *(EventType.BULK_READ, EventType.BREAK_GLASS, EventType.TENANT_DISABLED, EventType.TENANT_ENABLED),
    *(
        type_
        for type_ in EventType
        if type_.startswith(
            (
                *("access.", "call_approval.", "agent.", "token_family.", "detection."),
                *("incident.", "offboarding.", "campaign."),
            )
        )
    ),
)
# without what happens hourly to each connection
DEFAULT_EVENTS = (*(type_ for type_ in CONNECTION_EVENTS if type_ is not EventType.REFRESHED), *APP_EVENTS)

# their records may hold the reason of the failure before
_WITHOUT_FAILURE = (EventType.CREATED, EventType.REFRESHED, EventType.RECOVERED)

_Detail = Mapping[str, Any]
# what the id of an event's object is called in its data
_NAMED_BY = (
    *(("call_approval.", "approval_id"), ("agent.", "app_id"), ("token_family.", "family_id")),
    ("detection.", "object"),
    ("incident.", "incident_id"),
    ("offboarding.", "offboarding_id"),
    ("campaign.", "campaign_id"),
)

EVENTS_BY_ACTION: dict[AuditAction, EventType] = {
    AuditAction.GRANT_INSTALLED: EventType.CREATED,
    AuditAction.GRANT_REFRESHED: EventType.REFRESHED,
    AuditAction.CONNECTION_FAILING: EventType.FAILING,
    AuditAction.CONNECTION_RECOVERED: EventType.RECOVERED,
    AuditAction.CONNECTION_EXPIRING: EventType.EXPIRING,
    AuditAction.NEEDS_REAUTH: EventType.NEEDS_REAUTH,
    AuditAction.REVOKED_AT_PROVIDER: EventType.NEEDS_REAUTH,
    AuditAction.RECONNECT_REQUESTED: EventType.NEEDS_REAUTH,
    AuditAction.REVOKED: EventType.REVOKED,
    AuditAction.BULK_READ: EventType.BULK_READ,
    AuditAction.ACCESS_REQUESTED: EventType.ACCESS_REQUESTED,
    AuditAction.ACCESS_REMINDED: EventType.ACCESS_REMINDED,
    AuditAction.ACCESS_APPROVED: EventType.ACCESS_APPROVED,
    AuditAction.ACCESS_DENIED: EventType.ACCESS_DENIED,
    AuditAction.ACCESS_EXPIRED: EventType.ACCESS_EXPIRED,
    AuditAction.ACCESS_ENDED: EventType.ACCESS_ENDED,
    AuditAction.CALL_APPROVAL_REQUESTED: EventType.CALL_APPROVAL_REQUESTED,
    AuditAction.CALL_APPROVAL_REMINDED: EventType.CALL_APPROVAL_REMINDED,
    AuditAction.CALL_APPROVAL_ESCALATED: EventType.CALL_APPROVAL_ESCALATED,
    AuditAction.CALL_APPROVAL_APPROVED: EventType.CALL_APPROVAL_APPROVED,
    AuditAction.CALL_APPROVAL_DENIED: EventType.CALL_APPROVAL_DENIED,
    AuditAction.CALL_APPROVAL_EXPIRED: EventType.CALL_APPROVAL_EXPIRED,
    AuditAction.AGENT_STOPPED: EventType.AGENT_STOPPED,
    AuditAction.TOKEN_FAMILY_REPLAYED: EventType.TOKEN_FAMILY_REPLAYED,
    AuditAction.BREAK_GLASS: EventType.BREAK_GLASS,
    AuditAction.DETECTED: EventType.DETECTED,
    AuditAction.INCIDENT_OPENED: EventType.INCIDENT_OPENED,
    AuditAction.INCIDENT_ENDED: EventType.INCIDENT_ENDED,
    AuditAction.OFFBOARDING_BEGUN: EventType.OFFBOARDING_BEGUN,
    AuditAction.OFFBOARDING_PLANNED: EventType.OFFBOARDING_PLANNED,
    AuditAction.OFFBOARDING_UNDONE: EventType.OFFBOARDING_UNDONE,
    AuditAction.OFFBOARDING_ENDED: EventType.OFFBOARDING_ENDED,
    AuditAction.CAMPAIGN_BEGUN: EventType.CAMPAIGN_BEGUN,
    AuditAction.CAMPAIGN_UNDONE: EventType.CAMPAIGN_UNDONE,
    AuditAction.CAMPAIGN_ENDED: EventType.CAMPAIGN_ENDED,
    AuditAction.TENANT_DISABLED: EventType.TENANT_DISABLED,
    AuditAction.TENANT_ENABLED: EventType.TENANT_ENABLED,
    AuditAction.ACCOUNT_MISMATCH: EventType.ACCOUNT_MISMATCH,
    AuditAction.ACCOUNT_SHARED: EventType.ACCOUNT_SHARED,
}


def events_of(action: AuditAction, detail: _Detail) -> tuple[EventType, ...]:
    """The events of an audit record; most have none.

    `created` is the first grant alone: a later consent is `recovered`, if it ended a failure. A lost
    reply is also `outcome_unknown`, for an operator: an app that asks subjects to reconnect
    subscribes to `needs_reauth`.
    """
    type = EVENTS_BY_ACTION.get(action)
    if type is None or (type is EventType.CREATED and detail.get("generation") != 1):
        return ()
    if action is AuditAction.NEEDS_REAUTH and detail.get("reason") == ErrorCode.OUTCOME_UNKNOWN:
        return (type, EventType.OUTCOME_UNKNOWN)
    return (type,)


class WebhookEvent(TenantRow):
    """One event and its bytes, for every webhook that subscribes to it. No secret."""

    id: EventId
    type: EventType
    connection_id: ConnectionId | None
    at: datetime
    body: str  # JSON as text: exactly these bytes are signed


class EventData(CheckedModel):
    """The facts of a connection as they were when it happened. No member could hold a secret."""

    tenant: str = Field(description="the tenant's name")
    connection_id: str = Field(description="which connection")
    integration: str = Field(description="the integration's name")
    provider: str = Field(description="the provider's name in the catalogue")
    subject: str = Field(description="whose account it is, as the app named it")
    label: str = Field(description="tells several connections of one subject apart")
    state: LifecycleState = Field(description="the state it was in then")
    generation: int = Field(description="how many grants it has had; the newer of two events has the higher")
    expires_at: datetime | None = Field(description="when the access token ends; null: never, or no token")
    refresh_expires_at: datetime | None = Field(description="when the refresh token ends, if that is known")
    ends_at: datetime | None = Field(description="with `connection.expiring`: when it ends for good")
    reason: ErrorCode | None = Field(description="why a person has to act: a code of errors.md")
    repairer: Repairer | None = Field(description="who has to act")
    reauthorize: str | None = Field(
        description="where to POST for a new connect link, when the subject has to act; a path of the API"
    )
    revocation: RevocationOutcome | None = Field(
        description="with `connection.revoked`: how; `unknown`: a token that nobody holds may live on"
    )


class EventMessage(CheckedModel):
    """What is sent about a connection: Standard Webhooks' type, timestamp and data."""

    type: EventType
    timestamp: datetime = Field(description="when it happened, which may be long before it is delivered")
    data: EventData


def event_body(type: EventType, entry: AuditEntry, connection: Connection, grant: Grant | None) -> str:
    """The event as it is sent."""
    recorded = None if type in _WITHOUT_FAILURE else _reason(entry.detail.get("reason"))
    reason = recorded or connection.reason
    repairer = FAILURES[reason].repairer if reason else None
    if type is EventType.EXPIRING and not connection.flow.is_client_grant:
        repairer = Repairer.SUBJECT  # only the subject can keep it alive
    asks = repairer is Repairer.SUBJECT and not connection.state.is_final
    names = {"tenant", "integration", "provider", "subject", "label", "state", "generation", "revocation"}
    data = EventData(
        **connection.model_dump(include=names),
        connection_id=connection.id,
        expires_at=grant.expires_at if grant else None,
        refresh_expires_at=grant.refresh_expires_at if grant else None,
        ends_at=_moment(entry.detail.get("ends_at")),
        reason=reason,
        repairer=repairer,
        reauthorize=f"/v1/connections/{connection.id}/reauthorize" if asks else None,
    )
    return EventMessage(type=type, timestamp=entry.at, data=data).model_dump_json()


def app_event_body(type: EventType, entry: AuditEntry) -> str:
    """The event of a record about no connection: a bulk read, a session that was made on the host, a tenant
    that is disabled or enabled, an agent that is stopped, an incident (`incident_id`), a person who leaves
    (`offboarding_id`), a campaign (`campaign_id`), a family of tokens that a replay ended (`family_id`), a
    call that waits for an approval (`approval_id`), what was detected about an `object`, or a request for
    access (`request_id`)."""
    if type is EventType.BULK_READ:
        data = {"tenant": entry.tenant, "app": entry.detail["app"], "kind": entry.detail["kind"]}
    elif type is EventType.BREAK_GLASS:
        data = {"tenant": entry.tenant, **{name: entry.detail[name] for name in ("who", "reason", "until")}}
    elif type in (EventType.TENANT_DISABLED, EventType.TENANT_ENABLED):
        data = {"tenant": entry.tenant, "reason": entry.detail["reason"]}
    else:
        name = next((member for prefix, member in _NAMED_BY if type.startswith(prefix)), "request_id")
        data = {"tenant": entry.tenant, name: entry.object, **entry.detail}
    return _body(type, entry.at, data)


def ping_body(tenant: Tenant, webhook: str, at: datetime) -> str:
    return _body(EventType.PING, at, {"tenant": tenant, "webhook": webhook})


def _body(type: EventType, at: datetime, data: _Detail) -> str:
    body = {"type": type, "timestamp": at.isoformat(), "data": data}
    return json.dumps(body, separators=(",", ":"))


def _reason(value: object) -> ErrorCode | None:
    """The code of a record; some hold the words of a person or a provider instead."""
    return ErrorCode(value) if isinstance(value, str) and value in set(ErrorCode) else None


def _moment(value: object) -> datetime | None:
    """A moment of a record; one that can't be parsed is left out."""
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
