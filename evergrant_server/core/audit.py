"""The audit log's actions, and the fields of every record."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.model import FrozenModel

INSTALLATION = Tenant("-")  # of records that are about no tenant; no tenant has this name
SCOPES_LIMIT = 8_192  # characters of a record's scopes, with the spaces between them


class AuditAction(StrEnum):
    LEASE_ISSUED = "lease.issued"
    LEASE_REFUSED = "lease.refused"
    BULK_READ = "tokens.bulk_read"
    DPOP_PROOF_ISSUED = "lease.dpop_proof_issued"
    PROXY_CALLED = "proxy.called"
    PROXY_ANSWERED = "proxy.answered"
    CONNECTION_CREATED = "connection.created"
    CONNECTION_IMPORTED = "connection.imported"
    CONNECTION_EXPORTED = "connection.exported"
    EXPORT_REQUESTED = "connections.export_requested"
    CONNECTIONS_EXPORTED = "connections.exported"
    EXPORT_DELETED = "connections.export_deleted"
    CONSENT_STARTED = "consent.started"
    CONSENT_GRANTED = "consent.granted"
    CONSENT_RETURNED = "consent.returned"
    CONSENT_CONFIRMED = "consent.confirmed"
    CONSENT_UNCONFIRMED = "consent.unconfirmed"
    SUBJECT_MISMATCH = "consent.subject_mismatch"
    CONSENT_DENIED = "consent.denied"
    CONSENT_EXPIRED = "consent.expired"
    CONSENT_FAILED = "consent.failed"
    CALLBACK_REFUSED = "callback.refused"
    ACCOUNT_CHOICE_REQUESTED = "connection.account_choice_requested"
    ACCOUNT_CHOSEN = "connection.account_chosen"
    ACCOUNT_MISMATCH = "connection.account_mismatch"
    ACCOUNT_SHARED = "connection.account_shared"
    GRANT_INSTALLED = "grant.installed"
    GRANT_REFRESHED = "grant.refreshed"
    GRANT_REPLACED = "grant.replaced"
    REPLACED_GRANT_REVOKED = "grant.replaced_revoked"
    REFRESH_FAILED = "grant.refresh_failed"
    NEEDS_REAUTH = "connection.needs_reauth"
    CONNECTION_FAILING = "connection.failing"
    CONNECTION_RECOVERED = "connection.recovered"
    CONTROL_COMPARED = "connection.control_compared"
    CONNECTION_EXPIRING = "connection.expiring"
    REVOKED_AT_PROVIDER = "connection.revoked_at_provider"
    SECURITY_EVENT = "security_event.received"
    RECEIVER_PUT = "security_events.put"
    RECEIVER_DELETED = "security_events.deleted"
    PROVIDER_REPORT_RECEIVED = "connection.provider_report_received"
    LATE_TOKENS_RECEIVED = "grant.late_tokens_received"
    SENT_TWICE = "grant.sent_twice"
    REAUTHORIZATION_REQUESTED = "connection.reauthorization_requested"
    RECONNECT_REQUESTED = "connection.reconnect_requested"
    RELABELLED = "connection.relabelled"
    SOURCE_APP_CHANGED = "connection.source_app_changed"
    TOKEN_REPORTED = "connection.token_reported"
    REVOCATION_REQUESTED = "connection.revocation_requested"
    REVOCATION_FAILED = "connection.revocation_failed"
    REVOKED = "connection.revoked"
    HISTORY_EXPORTED = "history.exported"
    INTEGRATION_PUT = "integration.put"
    CLIENT_REGISTERED = "integration.client_registered"
    METADATA_CHANGED = "integration.metadata_changed"
    METADATA_REFUSED = "integration.metadata_refused"
    SECRET_ROTATED = "integration.secret_rotated"
    SECRET_ROLLED_BACK = "integration.secret_rolled_back"
    SECRET_REFUSED = "integration.secret_refused"
    SECRET_ACCEPTED = "integration.secret_accepted"
    CONTROL_REQUESTED = "integration.control_requested"
    CONTROL_ANSWERED = "integration.control_answered"
    INTEGRATION_DELETED = "integration.deleted"
    INTEGRATION_DISCOVERED = "integration.discovered"
    DEFINITION_PROPOSED = "definition.proposed"
    DEFINITION_CHECKED = "definition.checked"
    DEFINITION_APPROVED = "definition.approved"
    DEFINITION_REJECTED = "definition.rejected"
    DEFINITION_STAGED = "definition.staged"
    DEFINITION_ACTIVATED = "definition.activated"
    DEFINITION_ROLLED_BACK = "definition.rolled_back"
    TENANT_DISABLED = "tenant.disabled"
    TENANT_DURABILITY_CHANGED = "tenant.durability_changed"
    REGION_ATTACHED = "region.attached"
    REGION_DETACHED = "region.detached"
    REGION_PROMOTED = "region.promoted"
    TENANT_ENABLED = "tenant.enabled"
    MOVE_OFFERED = "tenant.move_offered"
    MOVE_UNDONE = "tenant.move_undone"
    TENANT_MOVED = "tenant.moved"
    TENANT_ARRIVED = "tenant.arrived"
    ERASURE_REQUESTED = "erasure.requested"
    ERASURE_REFUSED = "erasure.refused"
    ERASURE_ENDED = "erasure.ended"
    CONNECTION_ERASED = "connection.erased"
    HOLD_PUT = "legal_hold.put"
    HOLD_ENDED = "legal_hold.ended"
    INCIDENT_OPENED = "incident.opened"
    INCIDENT_PAUSED = "incident.paused"
    INCIDENT_ENDED = "incident.ended"
    OFFBOARDING_BEGUN = "offboarding.begun"
    OFFBOARDING_PLANNED = "offboarding.planned"
    OFFBOARDING_UNDONE = "offboarding.undone"
    OFFBOARDING_ENDED = "offboarding.ended"
    OFFBOARDING_RULE_PUT = "offboarding_rule.put"
    OFFBOARDING_RULE_DELETED = "offboarding_rule.deleted"
    CAMPAIGN_BEGUN = "campaign.begun"
    CAMPAIGN_WAVE_BEGUN = "campaign.wave_begun"
    CAMPAIGN_CHANGED = "campaign.changed"
    CAMPAIGN_UNDONE = "campaign.undone"
    CAMPAIGN_ENDED = "campaign.ended"
    CONNECTION_HELD = "connection.held"
    CONNECTION_RESTORED = "connection.restored"
    CONNECTION_HANDED_OVER = "connection.handed_over"
    DIRECTORY_USER_PUT = "directory_user.put"
    DIRECTORY_USER_DELETED = "directory_user.deleted"
    BULK_OPENED = "bulk.opened"
    BULK_PAUSED = "bulk.paused"
    BULK_ENDED = "bulk.ended"
    APP_PUT = "app.put"
    APP_DELETED = "app.deleted"
    DENIES_CHANGED = "app.denies_changed"
    AGENT_PUT = "app.agent_put"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    KEY_LOGGED_IN = "key.logged_in"
    CREDENTIAL_PUT = "credential.put"
    CREDENTIAL_DELETED = "credential.deleted"
    TOKEN_ISSUED = "token.issued"
    TOKEN_REFUSED = "token.refused"
    TOKEN_FAMILY_BEGUN = "token_family.begun"
    TOKEN_FAMILY_REFRESHED = "token_family.refreshed"
    TOKEN_FAMILY_REPLAYED = "token_family.replayed"
    TOKEN_FAMILY_ENDED = "token_family.ended"
    RESOURCE_TOKEN_REVOKED = "resource_token.revoked"
    TRUSTED_ISSUER_PUT = "trusted_issuer.put"
    TRUSTED_ISSUER_DELETED = "trusted_issuer.deleted"
    APPROVAL_REQUESTED = "approval.requested"
    APPROVAL_GIVEN = "approval.given"
    APPROVAL_USED = "approval.used"
    ACCESS_REQUESTED = "access.requested"
    ACCESS_REMINDED = "access.reminded"
    ACCESS_APPROVED = "access.approved"
    ACCESS_DENIED = "access.denied"
    ACCESS_WITHDRAWN = "access.withdrawn"
    ACCESS_EXPIRED = "access.expired"
    ACCESS_ENDED = "access.ended"
    CALL_APPROVAL_REQUESTED = "call_approval.requested"
    CALL_APPROVAL_REMINDED = "call_approval.reminded"
    CALL_APPROVAL_ESCALATED = "call_approval.escalated"
    CALL_APPROVAL_APPROVED = "call_approval.approved"
    CALL_APPROVAL_DENIED = "call_approval.denied"
    CALL_APPROVAL_EXPIRED = "call_approval.expired"
    CALL_APPROVAL_USED = "call_approval.used"
    AGENT_STOPPED = "app.agent_stopped"
    AGENT_STOP_ENDED = "app.agent_stop_ended"
    DELEGATION_ISSUED = "delegation.issued"
    DELEGATION_STOPPED = "delegation.stopped"
    DELEGATION_RULE_PUT = "delegation_rule.put"
    DELEGATION_RULE_DELETED = "delegation_rule.deleted"
    PERMIT_PUT = "permit.put"
    PERMIT_DELETED = "permit.deleted"
    ADMIN_LOGIN_PUT = "admin_login.put"
    ADMIN_LOGIN_DELETED = "admin_login.deleted"
    CLIENT_LOGIN_PUT = "client_login.put"
    CLIENT_LOGIN_DELETED = "client_login.deleted"
    OAUTH_CLIENT_PUT = "oauth_client.put"
    OAUTH_CLIENT_DELETED = "oauth_client.deleted"
    SUBJECT_LOGGED_IN = "subject.logged_in"
    SUBJECT_REFUSED = "subject.refused"
    AUTHORIZATION_GIVEN = "authorization.given"
    AUTHORIZATION_DENIED = "authorization.denied"
    PERSON_LOGGED_IN = "person.logged_in"
    PERSON_REFUSED = "person.refused"
    SESSION_ENDED = "session.ended"
    BREAK_GLASS = "session.break_glass"
    WEBHOOK_PUT = "webhook.put"
    WEBHOOK_DELETED = "webhook.deleted"
    WEBHOOK_SECRET_ROTATED = "webhook.secret_rotated"
    WEBHOOK_DISABLED = "webhook.disabled"
    WEBHOOK_TESTED = "webhook.tested"
    DELIVERY_REPLAYED = "webhook.delivery_replayed"
    AUTHORITY_BROKEN = "authority.broken"
    KEY_ROTATION_REQUESTED = "keys.rotation_requested"
    KEY_ROTATION_PAUSED = "keys.rotation_paused"
    KEYS_ROTATED = "keys.rotated"
    STREAM_PUT = "audit_stream.put"
    STREAM_DELETED = "audit_stream.deleted"
    STREAM_SECRET_ROTATED = "audit_stream.secret_rotated"
    ROOT_RETIRED = "keys.root_retired"
    SECRET_RETIRED = "keys.secret_retired"
    DETECTED = "detection.raised"
    QUESTION_ASKED = "question.asked"
    SHARD_BEGUN = "audit.shard_begun"
    SHARD_LOST = "audit.shard_lost"
    ANCHOR_LATE = "audit.anchor_late"
    ANCHOR_REFUSED = "audit.anchor_refused"
    HEAD_RECORDED = "audit.head_recorded"
    CHAIN_ENDED = "audit.chain_ended"
    LOG_VERIFIED = "audit.verified"
    HOSTS_ACCEPTED = "authority.hosts_accepted"
    BACKUP_DRILLED = "backup.drilled"
    BACKUP_RESTORED = "backup.restored"


class AuditEntry(FrozenModel):
    """What happened, before it has a place in the log. `detail` holds facts, never a secret."""

    tenant: Tenant
    at: datetime
    action: AuditAction
    object: str  # the id of what it happened to
    context: RequestContext
    detail: dict[str, Any] = Field(default_factory=dict)
    provenance: Provenance | None = None


class AuditRecord(AuditEntry):
    """An entry at its place: number `seq` of the tree of (tenant, shard), counted from 0. `hash` is its leaf,
    in hex.

    In a chain of before the trees the records were counted from 1, and each hash covers the one before.
    """

    shard: str
    seq: int
    hash: str


def bound_scopes(detail: Mapping[str, Any]) -> Mapping[str, Any]:
    """`detail` with at most SCOPES_LIMIT characters of its `scopes`: a provider decides how long they are.

    A detail that is cut gets the members `scope_count`, the number of all scopes, and `scopes_sha256`,
    the hash of all scopes separated by spaces (RFC 6749 section 3.3).
    """
    scopes: Sequence[str] = detail.get("scopes") or ()
    whole = " ".join(scopes)
    if len(whole) <= SCOPES_LIMIT:
        return detail
    kept, left = 0, SCOPES_LIMIT
    for scope in scopes:
        left -= len(scope) + 1
        if left < 0:
            break
        kept += 1
    # JSON may hold half of a surrogate pair, which UTF-8 can't say
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
    return {**detail, "scopes": list(scopes[:kept]), "scope_count": len(scopes), "scopes_sha256": digest}
