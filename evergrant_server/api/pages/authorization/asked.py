"""What a request asks for: checked against the tenant's rule, the app's permits and the person."""

from dataclasses import dataclass

from evergrant_server.api.pages.authorization.parameters import (
    AskedResource,
    AuthorizationRefused,
    AuthorizeQuery,
    require_code_flow,
    require_resource,
)
from evergrant_server.api.pages.authorization.session import clients_issuer
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.core.access import Action, App, Effect, Permit
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.login import is_same_subject
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.core.oauth.requests import AuthorizationRequest
from evergrant_server.policy import PermitQuestion, Target, decide
from evergrant_server.policy.callers import names_subject
from evergrant_server.store import Transaction

_ENDED = "the connection has ended: its app has to begin a new one"


@dataclass(frozen=True)
class Asked:
    """A request whose parameters are good, in its tenant."""

    challenge: str
    resource: AskedResource
    rule: ClientLogin
    app: App
    permits: tuple[Permit, ...]
    connection: Connection | None

    def is_for(self, subject: str) -> bool:
        """Whether the connection is this person's."""
        return self.connection is None or is_same_subject(self.rule.login, subject, self.connection.subject)

    def subject_of(self, subject: str) -> str:
        """The person's name as the connection spells it."""
        return subject if self.connection is None else self.connection.subject

    def integrations_for(self, subject: str) -> list[str]:
        """The integrations that the app's permits let it call for this person; `*` for all."""
        allowing = (it for it in self.permits if it.effect is Effect.ALLOW and Action.PROXY in it.actions)
        fits = (it for it in allowing if names_subject(it.subjects, subject))
        return sorted({it.integration for it in fits})


async def read_asked(
    pages: SubjectPages, tx: Transaction, query: AuthorizeQuery, client: GatewayClient | None
) -> Asked:
    """`client` None: it is a document that isn't read yet. Raises AuthorizationRefused."""
    challenge = require_code_flow(query)
    resource = require_resource(query, pages.api.settings.gateway_public_url)
    return await _judged(pages, tx, challenge, resource, client)


async def read_again(
    pages: SubjectPages, tx: Transaction, request: AuthorizationRequest, client: GatewayClient
) -> Asked:
    """What a request that was stored asks for now. Raises Failure NOT_PERMITTED for what was taken away."""
    resource = AskedResource(request.resource, request.connection_id)
    try:
        return await _judged(pages, tx, request.challenge, resource, client)
    except AuthorizationRefused as refused:
        raise Failure(ErrorCode.NOT_PERMITTED, refused.sentence) from None


async def _judged(
    pages: SubjectPages,
    tx: Transaction,
    challenge: str,
    resource: AskedResource,
    client: GatewayClient | None,
) -> Asked:
    tenant, connection = await _place(pages, tx, resource, client)
    kind = ClientKind.DOCUMENT if client is None else client.kind
    if kind is ClientKind.ADMIN and client is not None and client.tenant != tenant:
        raise AuthorizationRefused("invalid_target", "the resource is of another tenant than the client")
    rule = await _rule_for(tx, tenant, kind)
    app = await tx.access.app(tenant, rule.app_id)
    if app is None or app.disabled or app.is_over(pages.now):
        raise AuthorizationRefused("access_denied", "the app as which clients act is disabled, or has ended")
    permits = tuple(await tx.access.permits_of(app))
    if connection is not None:
        question = PermitQuestion(Target.of(connection), Action.PROXY, pages.now)
        anywhere = tuple(_from_anywhere(it) for it in permits)
        if not decide(anywhere, question).allowed:
            why = f"the app {app.name} has no permit with proxy for this connection: an admin gives it one"
            raise AuthorizationRefused("access_denied", why)
    return Asked(challenge, resource, rule, app, permits, connection)


async def _place(
    pages: SubjectPages, tx: Transaction, resource: AskedResource, client: GatewayClient | None
) -> tuple[Tenant, Connection | None]:
    """The tenant of a resource, and its connection."""
    if resource.connection_id is None:
        of_admin = client is not None and client.kind is ClientKind.ADMIN
        return client.tenant if of_admin and client else Tenant(pages.api.settings.tenant), None
    connection = await tx.connections.find_in_any_tenant(resource.connection_id)
    if connection is None:
        raise AuthorizationRefused("invalid_target", "there is no such connection")
    if connection.state.is_final or connection.state is LifecycleState.REVOKING:
        raise AuthorizationRefused("invalid_target", _ENDED)
    return connection.tenant, connection


async def _rule_for(tx: Transaction, tenant: Tenant, kind: ClientKind) -> ClientLogin:
    try:
        rule, _ = await clients_issuer(tx, tenant)
    except Failure as failure:
        if failure.code is ErrorCode.CLIENTS_OFF:
            why = "no app is designated for OAuth clients: an admin does it with evergrant clients login"
            raise AuthorizationRefused("unauthorized_client", why) from None
        if failure.code is ErrorCode.TENANT_DISABLED:
            raise AuthorizationRefused("access_denied", "the tenant is disabled") from None
        raise
    if not rule.takes(kind):
        how = "register themselves" if kind is ClientKind.REGISTERED else "are a metadata document"
        why = f"clients that {how} are turned off: an admin registers one with evergrant clients put"
        raise AuthorizationRefused("unauthorized_client", why)
    return rule


def _from_anywhere(permit: Permit) -> Permit:
    """Where the client will call from isn't known yet: the gateway looks at each call."""
    return permit.__replace__(sources=None) if permit.effect is Effect.ALLOW else permit
