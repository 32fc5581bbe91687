"""The consent session of a connect link, and the pages that show its outcome."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from fastapi import Depends, Request
from starlette.responses import Response

from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.http.transactions import record
from evergrant_server.api.integrations.definitions import consent_spec
from evergrant_server.api.pages.browser import BrowserSessions, html_response, redirect_response
from evergrant_server.console.pages import Pages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import hash_confirm_code
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
from providers.definition.schema import ProviderSpec


@dataclass(frozen=True)
class ConsentSession:
    """A consent with its connection, integration and definition."""

    consent: Consent
    connection: Connection
    integration: Integration
    spec: ProviderSpec
    provider_name: str  # for display
    confirm_code: Secret | None = None  # made by this request


class SubjectPages:
    """The pages for one request of a browser: loads consent sessions and renders their outcome."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.api: ApiContext = request.app.state.api
        self.templates: Pages = request.app.state.templates
        self.browsers: BrowserSessions = request.app.state.browsers
        self.context = trace_of(request).request_context("subject")

    @property
    def now(self) -> datetime:
        return self.api.clock.now()

    def is_bound(self, consent: Consent) -> bool:
        """Whether this browser started the consent."""
        return self.browsers.is_bound(self.request, consent.browser_hash)

    async def load_session(self, tx: Transaction, consent: Consent | None) -> ConsentSession:
        """The session of a consent. Raises Failure NOT_FOUND."""
        if consent is not None:
            connection = await tx.connections.get_authentic(consent.tenant, consent.connection_id)
            integration = await tx.integrations.get(consent.tenant, consent.integration_id)
            if connection is not None and integration is not None:
                spec = await consent_spec(tx, self.api.registry, integration, consent)
                name = provider_display_name(spec, integration)
                return ConsentSession(consent, connection, integration, spec, name)
        raise Failure(ErrorCode.NOT_FOUND, "This link is unknown.")

    async def session_of_link(self, tx: Transaction, link: str) -> ConsentSession:
        """The session of a connect link. Raises Failure NOT_FOUND."""
        return await self.load_session(tx, await tx.consents.by_link(hash_link(link)))

    async def outcome_response(self, session: ConsentSession) -> Response:
        """The page of the consent's status, or a redirect to `return_to`."""
        name = session.provider_name
        match session.consent.status:
            case ConsentStatus.DONE if session.connection.follow_up is FollowUp.CHOOSING:
                return await self._choice_page(session)
            case ConsentStatus.DONE:
                page = self.templates.connected(provider=name)
                return await self._return_to_app(session, LifecycleState.ACTIVE) or html_response(page)
            case ConsentStatus.DENIED:
                reference = reference_of(session.consent.id)
                page = self.templates.declined(provider=name, reference=reference)
                return await self._return_to_app(session, LifecycleState.DENIED) or html_response(page)
            case ConsentStatus.FAILED:
                failure = await self._failure_of(session)
                failure.context["reference"] = reference_of(session.consent.id)
                page = self.templates.failed(failure, asking=session.consent.by.removeprefix("app:"))
                return html_response(page, failure.rule.status)
            case _:
                return html_response(self.templates.pending(provider=name))

    async def _failure_of(self, session: ConsentSession) -> Failure:
        """Why the consent failed. Its browser is told with which account it was given."""
        code = ErrorCode(session.consent.failure or ErrorCode.CALLBACK_INVALID)
        if code is not ErrorCode.ACCOUNT_MISMATCH or not self.is_bound(session.consent):
            return Failure(code)
        async with self.api.store.read() as tx:
            came = (await tx.consents.account(session.consent)).came
        name = session.provider_name
        who = f"You signed in at {name} as {came}" if came else f"{name} didn't say who signed in"
        return Failure(code, f"{who}, and this connection is for another account. Nothing was stored.")

    async def _choice_page(self, session: ConsentSession) -> Response:
        """The page to choose an account. Raises Failure CHOICE_REQUIRED in a browser that didn't consent."""
        browser = self.browsers.cookie_of(self.request)
        if browser is None or not self.is_bound(session.consent):
            raise Failure(ErrorCode.CHOICE_REQUIRED, "Choose in the browser that consented.")
        async with self.api.store.read() as tx:
            grant = await tx.grants.get(session.connection.tenant, session.connection.id)
            link = (await tx.consents.connect_link(session.consent)).reveal()
        html = self.templates.choose(
            provider=session.provider_name,
            consent=session.consent,
            options=grant.options if grant else (),
            link=link,
            csrf=self.browsers.csrf_token(browser, link),
        )
        return html_response(html)

    async def confirm_response(self, session: ConsentSession, code: Secret) -> Response:
        """Have this browser take the confirm code to the app: by a redirect, or typed in by the subject."""
        redirect = await self._redirect_to_app(session, ("evergrant_code", code.reveal()))
        if redirect is not None:
            return redirect
        async with self.api.store.read() as tx:
            link = await tx.consents.connect_link(session.consent)
        response = redirect_response(f"/connect/{link.reveal()}")  # no provider's code in the address bar
        self.browsers.set_confirm_code(response, code)
        return response

    def confirm_page(self, session: ConsentSession) -> Response | None:
        """The page with the confirm code, in the browser that has it, while it can be used."""
        code = self.browsers.confirm_code_of(self.request)
        if not is_confirming(session.consent, self.now) or code is None:
            return None
        if hash_confirm_code(code.reveal()) != session.consent.confirm_hash:
            return None
        return html_response(self.templates.confirm(provider=session.provider_name, code=code))

    async def _return_to_app(self, session: ConsentSession, state: LifecycleState) -> Response | None:
        """A redirect to `return_to` with the outcome; none for one that its app has confirmed."""
        if session.consent.binding.needs_confirm and session.consent.confirmed_at is not None:
            return None
        return await self._redirect_to_app(session, ("state", state.value))

    async def _redirect_to_app(self, session: ConsentSession, brings: tuple[str, str]) -> Response | None:
        """A redirect to `return_to`, if the requesting app still lists this URL."""
        url, consent = session.consent.return_to, session.consent
        if url is None:
            return None
        async with self.api.store.read() as tx:
            app = await tx.access.app_by_name(consent.tenant, consent.by.removeprefix("app:"))
        if app is None or app.disabled or not app.may_return_to(url):
            return None
        parts = urlsplit(url)
        outcome = [("connection_id", session.connection.id), brings]
        query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *outcome])
        return redirect_response(urlunsplit((parts.scheme, parts.netloc, parts.path, query, "")))

    async def record(
        self, tx: Transaction, action: AuditAction, tenant: Tenant, object_id: str, **detail: object
    ) -> None:
        await record(tx, tenant, action, object_id, self.context, self.now, **detail)


GOES_ON = (ConsentStatus.OPEN, ConsentStatus.STARTED, ConsentStatus.CONFIRMING)  # its time being over

PagesDep = Annotated[SubjectPages, Depends(SubjectPages)]


def provider_display_name(spec: ProviderSpec, integration: Integration) -> str:
    """The provider's display name; of a discovered provider the host of its issuer."""
    host = urlsplit(integration.issuer or "").hostname if spec.discovery else None
    return host or spec.display_name


def require_open_consent(session: ConsentSession, now: datetime) -> None:
    """Raise the Failure that says why the consent can't continue."""
    if session.consent.expires_at <= now:
        raise Failure(ErrorCode.CONSENT_EXPIRED, "This link has expired.")
    if session.connection.state is LifecycleState.REVOKING or session.connection.state.is_final:
        raise Failure(session.connection.reason or ErrorCode.CONNECTION_REVOKED)
    if is_confirming(session.consent, now):
        raise Failure(ErrorCode.CONFIRM_REQUIRED)
    if session.consent.status not in GOES_ON:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This link was already used.")


Endpoint = Callable[..., Awaitable[Response]]


def html_route(endpoint: Endpoint, page: Callable[[Pages, Failure], str] = Pages.failed) -> Endpoint:
    """Decorate a route whose failures are shown as HTML pages instead of problem documents."""

    @functools.wraps(endpoint)
    async def shown(pages: SubjectPages, **values: Any) -> Response:
        try:
            return await endpoint(pages, **values)
        except Failure as failure:
            report_broken_authority(failure)
            return html_response(page(pages.templates, failure), failure.rule.status)

    return shown
