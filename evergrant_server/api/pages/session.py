"""The consent session of a connect link, and the pages that show its outcome."""

import functools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from fastapi import Depends, Request
from starlette.responses import Response

from evergrant_server.access.context import ApiContext
from evergrant_server.access.transactions import record
from evergrant_server.api.integrations.definitions import consent_spec
from evergrant_server.api.pages.browser import BrowserSessions, html_response, redirect_response
from evergrant_server.console.advice import WayOut
from evergrant_server.console.logos import Parties
from evergrant_server.console.pages import Pages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.confirmation import is_confirming
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus, hash_link, reference_of
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.traces import trace_of
from providers.definition.schema import ProviderSpec


def issuer_name(integration: Integration) -> str:
    """The host of the integration's issuer, with its port."""
    return urlsplit(integration.authorization_server or "").netloc or integration.name


def provider_display_name(spec: ProviderSpec, integration: Integration) -> str:
    """The provider's display name; of a discovered provider the host of its issuer, with its port."""
    discovered = spec.discovery and integration.authorization_server is not None
    return issuer_name(integration) if discovered else spec.display_name


AUTHORIZE_PATH, DEVICE_PATH, ME_PATH = "/oauth/authorize", "/oauth/device", "/me"


@dataclass(frozen=True)
class ConsentSession:
    """A consent with its connection, integration and definition."""

    consent: Consent
    connection: Connection
    integration: Integration
    spec: ProviderSpec
    provider_name: str  # for display
    confirm_code: Secret | None = None  # made by this request

    @property
    def app(self) -> str:
        """The app that requested the consent."""
        return self.consent.by.removeprefix("app:")


class SubjectPages:
    """The pages for one request of a browser: loads consent sessions and renders their outcome."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.api: ApiContext = request.app.state.api
        self.templates: Pages = request.app.state.templates
        self.browsers: BrowserSessions = request.app.state.browsers
        self.context = trace_of(request).request_context("subject")
        self.session: ConsentSession | None = None  # of the link or the state, for the page of a failure

    @property
    def now(self) -> datetime:
        return self.api.clock.now()

    def is_bound(self, consent: Consent) -> bool:
        """Whether this browser started the consent."""
        return self.is_bound_to(consent.browser_hash)

    def is_bound_to(self, browser_hash: str | None) -> bool:
        """Whether this is the browser with that hash."""
        return self.browsers.is_bound(self.request, browser_hash)

    def parties(self, session: ConsentSession) -> Parties:
        """The app, the integration and the provider, as the page shows them."""
        tenant, integration = session.consent.tenant, session.integration.name
        party = self.templates.logos.party
        host = session.provider_name if session.spec.discovery else session.spec.name
        return Parties(
            party(session.app, "app", tenant, session.app),
            party(integration, "integration", tenant, integration),
            party(session.provider_name, "provider", host),
        )

    async def load_session(self, tx: Transaction, consent: Consent | None) -> ConsentSession:
        """The session of a consent. Raises Failure NOT_FOUND, TENANT_DISABLED."""
        if consent is not None:
            await tx.tenants.require_enabled(consent.tenant)
            connection = await tx.connections.get_authentic(consent.tenant, consent.connection_id)
            integration = await tx.integrations.get(consent.tenant, consent.integration_id)
            if connection is not None and integration is not None:
                spec = await consent_spec(tx, self.api.registry, integration, consent)
                name = provider_display_name(spec, integration)
                self.session = ConsentSession(consent, connection, integration, spec, name)
                return self.session
        raise Failure(ErrorCode.NOT_FOUND, "This link is unknown.")

    async def session_of_link(self, tx: Transaction, link: str) -> ConsentSession:
        """The session of a connect link. Raises Failure NOT_FOUND."""
        return await self.load_session(tx, await tx.consents.by_link(hash_link(link)))

    async def outcome_response(self, session: ConsentSession) -> Response:
        """The page of the consent's status, or a redirect to `return_to`."""
        match session.consent.status:
            case ConsentStatus.DONE if session.connection.follow_up is FollowUp.CHOOSING:
                return await self._choice_page(session)
            case ConsentStatus.DONE:
                back = await self._return_to_app(session, LifecycleState.ACTIVE)
                return back or await self._connected_page(session)
            case ConsentStatus.DENIED:
                reference = reference_of(session.consent.id)
                page = self.templates.declined(parties=self.parties(session), reference=reference)
                return await self._return_to_app(session, LifecycleState.DENIED) or html_response(page)
            case ConsentStatus.FAILED:
                failure = await self._failure_of(session)
                failure.context["reference"] = reference_of(session.consent.id)
                self.session = session
                return await self.failure_response(failure)
            case _:
                return html_response(self.templates.pending(parties=self.parties(session)))

    async def _connected_page(self, session: ConsentSession) -> Response:
        """Who connected, and what was granted, for the browser that consented."""
        connection = session.connection
        async with self.api.store.read() as tx:
            grant = await tx.grants.get(connection.tenant, connection.id)
            account = (await tx.consents.account(session.consent)).came
        page = self.templates.connected(
            parties=self.parties(session),
            subject=connection.subject,
            account=account,
            scopes=grant.scopes if grant is not None else session.consent.scopes,
        )
        return html_response(page)

    async def _failure_of(self, session: ConsentSession) -> Failure:
        """Why the consent failed. Its browser is told with which account it was given."""
        code = ErrorCode(session.consent.failure or ErrorCode.CALLBACK_INVALID)
        if code is not ErrorCode.ACCOUNT_MISMATCH or not self.is_bound(session.consent):
            return Failure(code)
        async with self.api.store.read() as tx:
            came = (await tx.consents.account(session.consent)).came
        name = session.provider_name
        person = f"You signed in at {name} as {came}" if came else f"{name} didn't say who signed in"
        return Failure(code, f"{person}, and this connection is for another account. Nothing was stored.")

    async def _choice_page(self, session: ConsentSession) -> Response:
        """The page to choose an account. Raises Failure CHOICE_REQUIRED in a browser that didn't consent."""
        browser = self.browsers.cookie_of(self.request)
        if browser is None or not self.is_bound(session.consent):
            raise Failure(ErrorCode.CHOICE_REQUIRED, "Choose in the browser that consented.")
        async with self.api.store.read() as tx:
            grant = await tx.grants.get(session.connection.tenant, session.connection.id)
            link = (await tx.consents.connect_link(session.consent)).reveal()
        html = self.templates.choose(
            parties=self.parties(session),
            options=grant.options if grant else (),
            link=link,
            csrf=self.browsers.csrf_token(browser, link),
        )
        return html_response(html)

    async def _return_to_app(self, session: ConsentSession, state: LifecycleState) -> Response | None:
        """A redirect to `return_to` with the outcome; none for one that its app has confirmed."""
        if session.consent.binding.needs_confirm and session.consent.confirmed_at is not None:
            return None
        url = await self.app_url(session, state=state.value)
        return None if url is None else redirect_response(url)

    async def app_url(self, session: ConsentSession, **brings: str) -> str | None:
        """`return_to` with the outcome, if the requesting app still lists this URL, or it is the page of an
        authorization request."""
        url, consent = session.consent.return_to, session.consent
        if url is None:
            return None
        async with self.api.store.read() as tx:
            app = await tx.access.app_by_name(consent.tenant, session.app)
        ours = url.startswith(f"{self.api.settings.public_url}{AUTHORIZE_PATH}/")
        if app is None or app.disabled or not (ours or app.may_return_to(url)):
            return None
        parts = urlsplit(url)
        outcome = [("connection_id", session.connection.id), *brings.items()]
        query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *outcome])
        return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))

    async def failure_response(self, failure: Failure) -> Response:
        """The page of a failure: what happened, and what the subject does next."""
        report_broken_authority(failure)
        way = WayOut()
        with suppress(Failure):  # of the store, say: it is shown all the same
            way = await self._way_out(failure)
        return html_response(self.templates.failed(failure, way), failure.rule.status)

    async def _way_out(self, failure: Failure) -> WayOut:
        """The way out of the consent that this request names, as the consent is now."""
        session = self.session
        if session is None:
            return WayOut()
        async with self.api.store.read() as tx:
            session = await self.load_session(
                tx, await tx.consents.get(session.consent.tenant, session.consent.id)
            )
        over = has_ended(session, self.now)
        back = await self.app_url(session, state="failed", error=failure.code.value) if over else None
        return WayOut(self.parties(session), over, self.is_bound(session.consent), back)

    async def record(
        self, tx: Transaction, action: AuditAction, tenant: Tenant, object_id: str, **detail: object
    ) -> None:
        await record(tx, tenant, action, object_id, self.context, self.now, **detail)


GOES_ON = (ConsentStatus.OPEN, ConsentStatus.STARTED, ConsentStatus.CONFIRMING)  # its time being over

PagesDep = Annotated[SubjectPages, Depends(SubjectPages)]


def has_ended(session: ConsentSession, now: datetime) -> bool:
    """True when no browser can go on with the link any more."""
    connection = session.connection
    ended = connection.has_ended or connection.held_by is not None
    return ended or session.consent.expires_at <= now or session.consent.status not in GOES_ON


def require_open_consent(session: ConsentSession, now: datetime) -> None:
    """Raise the Failure that says why the consent can't continue."""
    if session.consent.status not in GOES_ON:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This link was already used.")
    if session.connection.state is LifecycleState.REVOKING or session.connection.state.is_final:
        raise Failure(session.connection.reason or ErrorCode.CONNECTION_REVOKED)
    if session.connection.held_by is not None:
        raise Failure(ErrorCode.CONNECTION_HELD)
    if session.consent.expires_at <= now:
        raise Failure(ErrorCode.CONSENT_EXPIRED)
    if is_confirming(session.consent, now):
        raise Failure(ErrorCode.CONFIRM_REQUIRED)


Endpoint = Callable[..., Awaitable[Response]]


def html_route(endpoint: Endpoint, page: Callable[[Pages, Failure], str] | None = None) -> Endpoint:
    """Decorate a route whose failures are shown as HTML pages instead of problem documents; on `page`, those
    that are no subject's."""

    @functools.wraps(endpoint)
    async def shown(pages: SubjectPages, **values: Any) -> Response:
        try:
            return await endpoint(pages, **values)
        except Failure as failure:
            if page is None:
                return await pages.failure_response(failure)
            report_broken_authority(failure)
            return html_response(page(pages.templates, failure), failure.rule.status)

    return shown
