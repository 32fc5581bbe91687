"""The tables whose rows have an authenticator in their column `mac`, in the order of their checks."""

from pydantic import BaseModel

from evergrant_server.core.access import App, AppCredential, AppKey, Approval, Permit, TenantStanding
from evergrant_server.core.agents.call_approvals import CallApproval
from evergrant_server.core.agents.delegation_rules import DelegationRule
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.definition import Definition
from evergrant_server.core.export import Export
from evergrant_server.core.integrations import Integration
from evergrant_server.core.lifecycle.access_requests import AccessRequest
from evergrant_server.core.oauth.authorizations import TokenFamily
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.core.people.logins import PersonLogin
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.store.access import AppCredentialRow, AppKeyRow, AppRow, PermitRow
from evergrant_server.store.agents.call_approvals import CallApprovalRow
from evergrant_server.store.agents.delegations import DelegationRow, DelegationRuleRow
from evergrant_server.store.agents.stops import AgentStopRow
from evergrant_server.store.connections.tables import ConnectionRow, ConsentRow
from evergrant_server.store.database.columns import IdTable
from evergrant_server.store.exports import ExportRow
from evergrant_server.store.integrations.definitions import DefinitionRow
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.oauth.request_tables import ClientLoginRow
from evergrant_server.store.oauth.tables import OAuthClientRow, TokenFamilyRow
from evergrant_server.store.people.tables import AdminLoginRow, PersonLoginRow, PersonSessionRow
from evergrant_server.store.review.access_requests import AccessRequestRow
from evergrant_server.store.review.approvals import ApprovalRow
from evergrant_server.store.tenants import TenantStandingRow
from evergrant_server.store.trusted_issuers import TrustedIssuerRow

CONFIGURATION: dict[type[IdTable], type[BaseModel]] = {
    TenantStandingRow: TenantStanding,
    AppRow: App,
    AppKeyRow: AppKey,
    AppCredentialRow: AppCredential,
    PermitRow: Permit,
    ApprovalRow: Approval,
    AccessRequestRow: AccessRequest,
    CallApprovalRow: CallApproval,
    AgentStopRow: AgentStop,
    DelegationRow: Delegation,
    DelegationRuleRow: DelegationRule,
    IntegrationRow: Integration,
    DefinitionRow: Definition,
    TrustedIssuerRow: TrustedIssuer,
    ExportRow: Export,
    AdminLoginRow: AdminLogin,
    PersonLoginRow: PersonLogin,
    PersonSessionRow: PersonSession,
    ClientLoginRow: ClientLogin,
}
ALL: dict[type[IdTable], type[BaseModel]] = {
    **CONFIGURATION,
    ConnectionRow: Connection,
    ConsentRow: Consent,
    OAuthClientRow: GatewayClient,
    TokenFamilyRow: TokenFamily,
}
