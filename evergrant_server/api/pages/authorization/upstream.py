"""The consent at a connection's provider, which an authorization request goes on to, and comes back from.

Its person is proven already, by the login of the request: the consent is bound like one of `binding: oidc`.
"""

import secrets
from datetime import datetime

from starlette.responses import Response

from evergrant_server.access.context import integration_spec
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.api.pages.attempt import send_away
from evergrant_server.api.pages.authorization.request import AuthorizationRefused
from evergrant_server.api.pages.session import AUTHORIZE_PATH, SubjectPages
from evergrant_server.core.access import App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import LINK_BYTES, Consent, ConsentStatus, hash_link
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConsentId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.requests import AuthorizationRequest, RequestStatus
from evergrant_server.core.secret import Secret
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction

_WAITING = (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)
_BROWSER_FLOWS = (Flow.AUTHORIZATION_CODE, Flow.OAUTH1)


def needs_provider(connection: Connection | None) -> bool:
    """Whether the connection's person has to consent at the provider before its token is of any use."""
    return connection is not None and connection.state in _WAITING


def require_consentable(connection: Connection | None) -> None:
    """Raise AuthorizationRefused for a connection that waits for something else than its person's browser."""
    if connection is None or not needs_provider(connection):
        return
    if connection.flow not in _BROWSER_FLOWS or connection.consented_with is not None:
        raise AuthorizationRefused("access_denied", "the connection has no grant yet: its app connects it")


async def consent_at_provider(
    pages: SubjectPages, request: AuthorizationRequest, rule: ClientLogin, app: App, browser: str
) -> Response:
    """Approve the request and send the browser to the provider."""
    link = secrets.token_urlsafe(LINK_BYTES)

    async def write(tx: Transaction) -> None:
        assert request.connection_id is not None
        connection = await tx.connections.get_authentic(request.tenant, request.connection_id)
        if connection is None:
            raise Failure(ErrorCode.NOT_FOUND)
        consent = await _new_consent(tx, pages, request, connection, app, link, browser)
        await tx.consents.add(consent, Secret(link))
        approved = request.__replace__(
            status=RequestStatus.AT_PROVIDER, consent_id=consent.id, expires_at=consent.expires_at
        )
        await tx.authorization_requests.replace(approved, expected=request.revision)
        detail = {"consent_id": consent.id, "binding": consent.binding, "login": rule.integration}
        action = AuditAction.CONSENT_CONFIRMED
        await pages.record(tx, action, request.tenant, connection.id, **detail)

    await run_transaction(pages.api.store, write)
    return await send_away(pages, link, browser)


async def _renewed(
    tx: Transaction, pages: SubjectPages, integration: Integration, connection: Connection, ends: datetime
) -> Connection:
    """The connection, which waits for the new consent as long as that lasts."""
    require_ready(integration)
    if connection.state is not LifecycleState.PENDING_CONSENT:
        return connection
    spec = await integration_spec(tx, pages.api.registry, integration)
    scopes = connection.requested_scopes
    if connection.default_scopes:
        scopes = integration.scopes_by_default or spec.default_scopes
    deadline = max(connection.consent_deadline, ends)
    later = connection.__replace__(consent_deadline=deadline, requested_scopes=scopes)
    return await tx.connections.replace(later, expected=connection.revision)


async def _new_consent(
    tx: Transaction,
    pages: SubjectPages,
    request: AuthorizationRequest,
    connection: Connection,
    app: App,
    link: str,
    browser: str,
) -> Consent:
    """A consent of this browser, which has begun: its subject is logged in."""
    now, ends = pages.now, pages.now + pages.api.settings.consent_ttl
    integration = require_found(await tx.integrations.of_next_consent(connection))
    connection = await _renewed(tx, pages, integration, connection, ends)
    return Consent(
        tenant=connection.tenant,
        id=ConsentId(new_id("cns")),
        connection_id=connection.id,
        integration_id=integration.id,
        scopes=connection.requested_scopes,
        slot_scopes=connection.slot_scopes,
        return_to=f"{pages.api.settings.public_url}{AUTHORIZE_PATH}/{request.id}",
        status=ConsentStatus.STARTED,
        browser_hash=pages.browsers.hash_cookie(browser),
        binding=Binding.OIDC,
        confirmed_at=now,
        app_id=app.id,
        replaces_any=True,  # the subject itself began it, and is logged in
        link_hash=hash_link(link),
        created_at=now,
        expires_at=ends,
        by=f"app:{app.name}",
        trace_id=pages.context.trace_id,
    )
