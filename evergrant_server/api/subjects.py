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
from evergrant_server.api.browsers import Browsers, page, redirect
from evergrant_server.api.definitions import spec_for
from evergrant_server.api.parts import Parts
from evergrant_server.api.tracing import trace_of
from evergrant_server.console import Pages
from evergrant_server.core.access import Integration
from evergrant_server.core.account import FollowUp
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.consent import Consent, ConsentStatus
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Tx
from providers.spec import ProviderSpec

SUBJECT = "subject"  # who asks, on these pages


@dataclass(frozen=True)
class Going:
    """A consent that somebody goes on with, and what it belongs to."""

    consent: Consent
    connection: Connection
    integration: Integration
    spec: ProviderSpec
    provider: str  # as people call it


class Subjects:
    """The parts of the pages that hold no state of their own."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.pages = Pages()
        self.browsers = Browsers(parts.settings.public_url, parts.ring)

    async def going(self, tx: Tx, consent: Consent | None) -> Going:
        """Everything a consent belongs to. Raises Failure NOT_FOUND."""
        if consent is not None:
            connection = await tx.connections.get(consent.tenant, consent.connection_id)
            integration = await tx.integrations.get(consent.tenant, consent.integration_id)
            if connection is not None and integration is not None:
                spec = await spec_for(tx, self.parts.registry, integration, consent)
                return Going(consent, connection, integration, spec, known_as(spec, integration))
        raise Failure(Code.NOT_FOUND, "This link is not known.")

    async def shown(self, request: Request, going: Going) -> Response:
        """How a consent stands: its result page, or back to the app that asked."""
        match going.consent.status:
            case ConsentStatus.DONE if going.connection.follow_up is FollowUp.CHOOSING:
                return await self._choice(request, going)
            case ConsentStatus.DONE:
                return await self._back(going, State.ACTIVE) or page(
                    self.pages.connected(provider=going.provider)
                )
            case ConsentStatus.DENIED:
                return await self._back(going, State.DENIED) or page(
                    self.pages.declined(provider=going.provider)
                )
            case ConsentStatus.FAILED:
                failure = Failure(Code(going.consent.failure or Code.CALLBACK_INVALID))
                return page(self.pages.failed(failure), failure.rule.status)
            case _:
                return page(self.pages.waiting(provider=going.provider))

    async def _choice(self, request: Request, going: Going) -> Response:
        """Which account, asked in the browser that consented. Another one learns only that it is asked."""
        browser = self.browsers.of(request)
        if browser is None or not self.browsers.is_bound(request, going.consent.browser_hash):
            raise Failure(Code.CHOICE_REQUIRED, "Choose in the browser that consented.")
        async with self.parts.store.read() as tx:
            grant = await tx.grants.get(going.connection.tenant, going.connection.id)
            link = (await tx.consents.link(going.consent)).reveal()
        html = self.pages.choose(
            provider=going.provider,
            consent=going.consent,
            options=grant.options if grant else (),
            link=link,
            csrf=self.browsers.csrf(browser, link),
        )
        return page(html)

    async def _back(self, going: Going, state: State) -> Response | None:
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
        return redirect(urlunsplit((parts.scheme, parts.netloc, parts.path, query, "")))

    async def record(
        self, tx: Tx, request: Request, action: AuditAction, tenant: Tenant, what: str, **detail: object
    ) -> None:
        entry = AuditEntry(
            tenant=tenant,
            at=self.parts.clock.now(),
            action=action,
            object=what,
            asked=trace_of(request).asked_by(SUBJECT),
            detail=detail,
        )
        await audit.append(tx, entry)


def known_as(spec: ProviderSpec, integration: Integration) -> str:
    """As people call the provider: a server found by its issuer is known by where they log in."""
    host = urlsplit(integration.issuer or "").hostname if spec.discovery else None
    return host or spec.display_name


def require_open(going: Going, now: datetime) -> None:
    """Raise the Failure that says why a consent can't be gone on with."""
    if going.consent.expires_at <= now:
        raise Failure(Code.CONSENT_EXPIRED, "This link has expired.")
    if going.connection.state is State.REVOKING or going.connection.state.final:
        raise Failure(going.connection.reason or Code.CONNECTION_REVOKED)
    if going.consent.status not in (ConsentStatus.OPEN, ConsentStatus.STARTED):
        raise Failure(Code.CALLBACK_INVALID, "This link was used already.")


Endpoint = Callable[..., Awaitable[Response]]


def as_page(endpoint: Endpoint) -> Endpoint:
    """A route for people: its failures are pages with a code, not documents."""

    @functools.wraps(endpoint)
    async def shown(request: Request, **values: Any) -> Response:
        try:
            return await endpoint(request, **values)
        except Failure as failure:
            pages: Pages = subjects_of(request).pages
            return page(pages.failed(failure), failure.rule.status)

    return shown


def subjects_of(request: Request) -> Subjects:
    return request.app.state.subjects
