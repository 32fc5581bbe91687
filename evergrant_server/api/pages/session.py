"""What the subject's pages share: finding a consent, judging it, showing its end, saying what failed."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from starlette.requests import Request
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.integrations.definitions import consent_spec
from evergrant_server.api.pages.browser import BrowserSessions, html_response, redirect_response
from evergrant_server.console import Pages
from evergrant_server.core.access import Integration
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.account import FollowUp
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec

SUBJECT_ACTOR = "subject"  # who asks, on these pages


@dataclass(frozen=True)
class ConsentSession:
    """A consent that somebody goes on with, and what it belongs to."""

    consent: Consent
    connection: Connection
    integration: Integration
    spec: ProviderSpec
    provider_name: str  # as people call it


class SubjectPages:
    """The parts of the pages that hold no state of their own."""

    def __init__(self, parts: ApiContext) -> None:
        self.parts = parts
        self.pages = Pages()
        self.browsers = BrowserSessions(parts.settings.public_url, parts.ring)

    async def load_session(self, tx: Transaction, consent: Consent | None) -> ConsentSession:
        """Everything a consent belongs to. Raises Failure NOT_FOUND."""
        if consent is not None:
            connection = await tx.connections.get(consent.tenant, consent.connection_id)
            integration = await tx.integrations.get(consent.tenant, consent.integration_id)
            if connection is not None and integration is not None:
                spec = await consent_spec(tx, self.parts.registry, integration, consent)
                return ConsentSession(
                    consent, connection, integration, spec, provider_display_name(spec, integration)
                )
        raise Failure(ErrorCode.NOT_FOUND, "This link is not known.")

    async def outcome_response(self, request: Request, going: ConsentSession) -> Response:
        """How a consent stands: its result page, or back to the app that asked."""
        match going.consent.status:
            case ConsentStatus.DONE if going.connection.follow_up is FollowUp.CHOOSING:
                return await self._choice_page(request, going)
            case ConsentStatus.DONE:
                return await self._return_to_app(going, LifecycleState.ACTIVE) or html_response(
                    self.pages.connected(provider=going.provider_name)
                )
            case ConsentStatus.DENIED:
                return await self._return_to_app(going, LifecycleState.DENIED) or html_response(
                    self.pages.declined(provider=going.provider_name)
                )
            case ConsentStatus.FAILED:
                failure = Failure(ErrorCode(going.consent.failure or ErrorCode.CALLBACK_INVALID))
                return html_response(self.pages.failed(failure), failure.rule.status)
            case _:
                return html_response(self.pages.pending(provider=going.provider_name))

    async def _choice_page(self, request: Request, going: ConsentSession) -> Response:
        """Which account, asked in the browser that consented. Another one learns only that it is asked."""
        browser = self.browsers.cookie_of(request)
        if browser is None or not self.browsers.is_bound(request, going.consent.browser_hash):
            raise Failure(ErrorCode.CHOICE_REQUIRED, "Choose in the browser that consented.")
        async with self.parts.store.read() as tx:
            grant = await tx.grants.get(going.connection.tenant, going.connection.id)
            link = (await tx.consents.connect_link(going.consent)).reveal()
        html = self.pages.choose(
            provider=going.provider_name,
            consent=going.consent,
            options=grant.options if grant else (),
            link=link,
            csrf=self.browsers.csrf_token(browser, link),
        )
        return html_response(html)

    async def _return_to_app(self, going: ConsentSession, state: LifecycleState) -> Response | None:
        """To `return_to`, if the app that asked still lists exactly this URL."""
        url = going.consent.return_to
        if url is None:
            return None
        async with self.parts.store.read() as tx:
            app = await tx.access.app_by_name(going.consent.tenant, going.consent.by.removeprefix("app:"))
        if app is None or app.disabled or url not in app.return_to:
            return None
        parts = urlsplit(url)
        said = [("connection_id", going.connection.id), ("state", state.value)]
        query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *said])
        return redirect_response(urlunsplit((parts.scheme, parts.netloc, parts.path, query, "")))

    async def record(
        self,
        tx: Transaction,
        request: Request,
        action: AuditAction,
        tenant: Tenant,
        what: str,
        **detail: object,
    ) -> None:
        entry = AuditEntry(
            tenant=tenant,
            at=self.parts.clock.now(),
            action=action,
            object=what,
            context=trace_of(request).request_context(SUBJECT_ACTOR),
            detail=detail,
        )
        await audit.append(tx, entry)


def provider_display_name(spec: ProviderSpec, integration: Integration) -> str:
    """As people call the provider: a server found by its issuer is known by where they log in."""
    host = urlsplit(integration.issuer or "").hostname if spec.discovery else None
    return host or spec.display_name


def require_open_consent(going: ConsentSession, now: datetime) -> None:
    """Raise the Failure that says why a consent can't be gone on with."""
    if going.consent.expires_at <= now:
        raise Failure(ErrorCode.CONSENT_EXPIRED, "This link has expired.")
    if going.connection.state is LifecycleState.REVOKING or going.connection.state.is_final:
        raise Failure(going.connection.reason or ErrorCode.CONNECTION_REVOKED)
    if going.consent.status not in (ConsentStatus.OPEN, ConsentStatus.STARTED):
        raise Failure(ErrorCode.CALLBACK_INVALID, "This link was used already.")


Endpoint = Callable[..., Awaitable[Response]]


def html_route(endpoint: Endpoint) -> Endpoint:
    """A route for people: its failures are pages with a code, not documents."""

    @functools.wraps(endpoint)
    async def shown(request: Request, **values: Any) -> Response:
        try:
            return await endpoint(request, **values)
        except Failure as failure:
            pages: Pages = subject_pages(request).pages
            return html_response(pages.failed(failure), failure.rule.status)

    return shown


def subject_pages(request: Request) -> SubjectPages:
    return request.app.state.subjects
