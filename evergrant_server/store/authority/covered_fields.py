"""Which fields of a row its authenticator covers, and which rows a gateway may write (`authenticators`)."""

from collections.abc import Callable
from typing import Any

from evergrant_server.core.access import (
    App,
    AppCredential,
    AppKey,
    AppToken,
    KeySession,
    Permit,
    TenantStanding,
)
from evergrant_server.core.agents.delegation_rules import DelegationRule
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.audit_streams.stream import AuditStream
from evergrant_server.core.cells.moves import TenantMove
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.bulk import BulkOrder
from evergrant_server.core.connections.campaigns import Campaign
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.erasure import Erasure, LegalHold
from evergrant_server.core.connections.incidents import Incident
from evergrant_server.core.decisions import AccessRequest, Approval, CallApproval, CallApprovalState
from evergrant_server.core.definition import Definition
from evergrant_server.core.events import EventType, WebhookEvent
from evergrant_server.core.export import Export
from evergrant_server.core.integrations import Integration
from evergrant_server.core.model import CheckedModel
from evergrant_server.core.oauth.authorizations import (
    AccessToken,
    AuthorizationCode,
    RefreshToken,
    TokenFamily,
)
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.core.oauth.requests import (
    AuthorizationRequest,
    ClientConsent,
    DeviceAuthorization,
    SubjectSession,
)
from evergrant_server.core.people.leavers import DirectoryUser, Leaver, OffboardingRule
from evergrant_server.core.people.logins import PersonLogin
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.core.provider_events import Receiver
from evergrant_server.core.webhooks import Webhook
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.crypto.root_keys import RootKey

_MOMENTS_OF_CONSENTS = {"revision", "created_at", "expires_at", "confirm_by", "confirmed_at"}
_PROGRESS_OF_CAMPAIGNS = {"wave", "to_ask", "wave_at", "asked", "reminded"}
_FACTS_OF_RECEIVERS = {"revision", "created_at", "changed_at", "keys_requested_at", "keys_problem"}
_FACTS_OF_INTEGRATIONS = {
    *("revision", "created_at", "changed_at", "state", "problem", "refresh", "refresh_overrides"),
    *("previous_secret_until", "secret_refused_at", "client_secret_expires_at", "metadata_read_at"),
    *("client_certificate_expires_at", "registration_sent_at"),
}
# The fields that the authenticator of a row covers. Those that hold their default are left out, so that a
# field that comes later, with a default, changes no authenticator.
COVERED: dict[type[CheckedModel], set[str]] = {
    TenantStanding: {"tenant", "id", "disabled", "reason", "phase", "moved_to"},
    TenantMove: {"tenant", "id", "side", "peer", "state", "secret_hash", "expires_at"},
    App: set(App.model_fields) - {"revision", "created_at"},
    AppKey: {"tenant", "id", "app_id", "secret_hash", "revoked_at"},  # the hash covers the expiry
    AppCredential: set(AppCredential.model_fields) - {"revision", "created_at"},
    Permit: set(Permit.model_fields) - {"revision", "created_at"},
    Approval: {"tenant", "id", "app_id", "by", "command", "body", "resolves_to", "approved_by", "used_at"}
    | {"expires_at"},
    AccessRequest: {"tenant", "id", "app_id", "kind", "permit_name", "permit", "lifetime_s", "requested_by"}
    | {"state", "decided_by"},
    CallApproval: {"tenant", "id", "app_id", "connection_id", "call_hash", "round", "name", "reason"}
    | {"requested_by", "decide_by", "state", "decided_by", "use_by"},
    AgentStop: {"tenant", "id", "app_id", "reason", "by", "revoke_connections", "finished_at"},
    Delegation: set(Delegation.model_fields) - {"revision", "created_at"},
    DelegationRule: set(DelegationRule.model_fields) - {"revision", "created_at", "changed_at"},
    Integration: set(Integration.model_fields) - _FACTS_OF_INTEGRATIONS,
    TrustedIssuer: {"tenant", "id", "name", "kind", "issuer", "jwks_uri", "keys", "keys_at"},
    Definition: {"tenant", "id", "name", "version", "document", "state", "approved"},
    Erasure: {"tenant", "id", "kind", "target", "target_hash", "reason", "by", "state", "waits_until"}
    | {"finished_at"},
    Incident: {"tenant", "id", "kind", "integration", "app", "app_id", "since", "until", "reason", "by"}
    | {"state", "waits_until", "selected", "digest", "lines", "note", "finished_at"}
    | {"person", "held_until", "undone_at"},
    OffboardingRule: set(OffboardingRule.model_fields) - {"revision", "changed_at"},
    DirectoryUser: set(DirectoryUser.model_fields) - {"revision", "created_at", "changed_at"},
    Leaver: set(Leaver.model_fields) - {"revision"},
    BulkOrder: {"tenant", "id", "action", "filters", "label", "reason", "by", "state", "waits_until"}
    | {"selected", "finished_at"},
    Campaign: set(Campaign.model_fields) - {"revision"} - _PROGRESS_OF_CAMPAIGNS,
    LegalHold: set(LegalHold.model_fields) - {"revision"},
    Export: {"tenant", "id", "recipient", "filters", "by"},
    Consent: set(Consent.model_fields) - _MOMENTS_OF_CONSENTS,
    AdminLogin: set(AdminLogin.model_fields) - {"revision", "changed_at"},
    PersonLogin: set(PersonLogin.model_fields) - {"revision"},
    PersonSession: set(PersonSession.model_fields) - {"revision", "last_used_at"},
    GatewayClient: set(GatewayClient.model_fields) - {"revision", "created_at", "used_at"},
    AuthorizationCode: set(AuthorizationCode.model_fields) - {"revision"},
    TokenFamily: set(TokenFamily.model_fields) - {"revision"},
    RefreshToken: set(RefreshToken.model_fields) - {"revision"},
    ClientLogin: set(ClientLogin.model_fields) - {"revision", "changed_at"},
    AuthorizationRequest: set(AuthorizationRequest.model_fields) - {"revision"},
    DeviceAuthorization: set(DeviceAuthorization.model_fields) - {"revision", "polled_at", "interval_s"},
    SubjectSession: set(SubjectSession.model_fields) - {"revision"},
    ClientConsent: set(ClientConsent.model_fields) - {"revision", "created_at", "used_at"},
    AppToken: set(AppToken.model_fields) - {"revision"},
    AccessToken: set(AccessToken.model_fields) - {"revision"},
    KeySession: set(KeySession.model_fields) - {"revision"},
    Webhook: {"tenant", "id", "name", "url", "events", "integration", "disabled_by"},
    AuditStream: {"tenant", "id", "name", "url", "format", "header_names", "disabled"},
    WebhookEvent: set(WebhookEvent.model_fields) - {"revision"},
    RootKey: set(RootKey.model_fields) - {"revision", "created_at"},
    Receiver: set(Receiver.model_fields) - _FACTS_OF_RECEIVERS,
}


def _opens_nothing_yet(consent: Consent) -> bool:
    """A new consent whose subject has to log in before its link leads to the provider (ADR 0061)."""
    is_new = (consent.kind, consent.status) == (ConsentKind.CODE, ConsentStatus.OPEN)
    return is_new and consent.binding is Binding.OIDC


def _is_asked_or_used(approval: CallApproval) -> bool:
    """A request without a decision, or an approval that is used up."""
    return approval.state in (CallApprovalState.WAITING, CallApprovalState.USED)


def _is_of_an_asked_call(event: WebhookEvent) -> bool:
    return event.type is EventType.CALL_APPROVAL_REQUESTED


def _has_no_grant(connection: Connection) -> bool:
    """A connection whose first grant a worker has yet to install: it signs the names then."""
    return connection.generation == 0


# What counts with a gateway's signature. Every other row needs one that a gateway can't make.
GATEWAY_MAY_WRITE: dict[type[CheckedModel], Callable[[Any], bool]] = {
    CallApproval: _is_asked_or_used,
    Connection: _has_no_grant,
    Consent: _opens_nothing_yet,
    WebhookEvent: _is_of_an_asked_call,
}
