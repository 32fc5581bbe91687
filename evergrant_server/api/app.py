"""The ASGI application and the list of its routers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from evergrant_server.access.context import ApiContext
from evergrant_server.access.decision import LeaseIssuer
from evergrant_server.access.recording import CallerNetworks, RefusalLog
from evergrant_server.access.refreshes import RefreshWaiter
from evergrant_server.api import (
    audit,
    audit_export,
    audit_proofs,
    audit_streams,
    detections,
    erasures,
    evidence,
    health,
    incidents,
    key_rotations,
    me,
    moves,
    openapi,
    overview,
    questions,
    secret_rotations,
    stories,
    webhooks,
)
from evergrant_server.api.agents import delegation_explanation, delegation_rules, delegations
from evergrant_server.api.agents import routes as agents
from evergrant_server.api.apps import (
    credentials,
    explain,
    keys,
    permits,
    reach,
    report,
    simulation,
    trusted_issuers,
)
from evergrant_server.api.apps import routes as apps
from evergrant_server.api.campaigns import routes as campaigns
from evergrant_server.api.connections import bulk, commands, history
from evergrant_server.api.connections import routes as connections
from evergrant_server.api.console import agents as console_agents
from evergrant_server.api.console import audit as console_audit
from evergrant_server.api.console import bulk as console_bulk
from evergrant_server.api.console import connections as console_connections
from evergrant_server.api.console import definitions as console_definitions
from evergrant_server.api.console import imports as console_imports
from evergrant_server.api.console import incidents as console_incidents
from evergrant_server.api.console import integrations as console_integrations
from evergrant_server.api.console import keys as console_keys
from evergrant_server.api.console import leavers as console_leavers
from evergrant_server.api.console import login as console_login
from evergrant_server.api.console import overview as console_overview
from evergrant_server.api.console import questions as console_questions
from evergrant_server.api.console import requests as console_requests
from evergrant_server.api.console import webhooks as console_webhooks
from evergrant_server.api.console.rights import apps as console_apps
from evergrant_server.api.console.rights import clients as console_clients
from evergrant_server.api.console.rights import credentials as console_credentials
from evergrant_server.api.console.rights import people as console_people
from evergrant_server.api.console.rights import permits as console_permits
from evergrant_server.api.console.rights import rules as console_rules
from evergrant_server.api.decisions import access_requests, approvals, call_approvals
from evergrant_server.api.http.client_certificates import TrustedHop
from evergrant_server.api.http.middleware import Deadline, Envelope
from evergrant_server.api.http.request_errors import install_error_handlers
from evergrant_server.api.integrations import definitions
from evergrant_server.api.integrations import health as integration_health
from evergrant_server.api.integrations import routes as integrations
from evergrant_server.api.leases import oauth1_signatures, refresh_command
from evergrant_server.api.leases import routes as leases
from evergrant_server.api.leases.judged_pairs import JudgedPairs, PairMiddleware
from evergrant_server.api.leavers import routes as leavers
from evergrant_server.api.leavers import rule as offboarding_rule
from evergrant_server.api.leavers import scim
from evergrant_server.api.oauth import clients as oauth_clients
from evergrant_server.api.oauth import family_routes, registration, token_endpoint
from evergrant_server.api.oauth import metadata as server_metadata
from evergrant_server.api.pages import callback, connect, people
from evergrant_server.api.pages.authorization import device
from evergrant_server.api.pages.authorization import routes as authorization
from evergrant_server.api.pages.browser import BrowserSessions, answer_unknown_path
from evergrant_server.api.pages.guesses import GuessLimit
from evergrant_server.api.people import login_rules, sessions
from evergrant_server.api.provider_events import inbound, receivers
from evergrant_server.api.transfer import imports
from evergrant_server.api.transfer import routes as transfer
from evergrant_server.console.console_pages import ConsolePages
from evergrant_server.console.logos import Logos
from evergrant_server.console.pages import Pages
from evergrant_server.settings.types import CertificateHeader
from evergrant_server.telemetry import traces

VERSION = "0.1.0"

# FastAPI's own spans contain the path, which may hold a connect link; its logs contain exception texts.
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

ROUTERS = (
    health.router,
    overview.router,
    definitions.router,
    integrations.metadata_router,
    integrations.router,
    integration_health.router,
    apps.router,
    agents.router,
    delegations.router,
    delegation_explanation.router,
    delegation_rules.router,
    call_approvals.router,
    permits.router,
    keys.router,
    credentials.router,
    server_metadata.router,
    registration.router,
    login_rules.client_login_router,
    oauth_clients.router,
    authorization.router,
    device.router,
    me.router,
    token_endpoint.router,
    family_routes.router,
    approvals.router,
    trusted_issuers.router,
    access_requests.router,
    audit.access_router,
    erasures.router,
    moves.router,
    incidents.router,
    leavers.router,
    offboarding_rule.router,
    scim.router,
    simulation.router,
    explain.router,
    report.router,
    reach.router,
    login_rules.admin_login_router,
    sessions.router,
    people.router,
    people.command_router,
    transfer.router,  # before /v1/connections/{id}, which would match import and export
    imports.router,
    bulk.router,  # likewise
    campaigns.router,
    connections.router,
    commands.router,
    refresh_command.router,
    oauth1_signatures.router,
    history.router,
    stories.router,
    audit.router,
    audit_proofs.router,
    audit_export.router,
    audit_streams.router,
    webhooks.router,
    key_rotations.router,
    secret_rotations.router,
    questions.router,
    questions.access_router,
    detections.router,
    evidence.router,
    receivers.router,
    inbound.router,
    connect.router,
    callback.router,
    callback.fragment_router,
    console_login.router,
    console_overview.router,
    console_connections.router,
    console_imports.router,
    console_bulk.router,
    console_integrations.router,
    console_definitions.router,
    console_apps.router,
    console_credentials.router,
    console_permits.router,
    console_rules.router,
    console_agents.router,
    console_clients.router,
    console_people.router,
    console_requests.router,
    console_audit.router,
    console_keys.router,
    console_questions.router,
    console_incidents.router,
    console_leavers.router,
    console_webhooks.router,
    openapi.router,
)

_ROUTES = APIRouter()  # whose routes FastAPI prepares once in a process
for _router in ROUTERS:
    _ROUTES.include_router(_router)


_DESCRIPTION = "Managed OAuth: name a connection, get a token, or learn who has to act."


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document of all routes, made without a running API."""
    app = FastAPI(title="Evergrant", version=VERSION, description=_DESCRIPTION)
    for router in ROUTERS:
        app.include_router(router)
    return openapi.openapi_schema(app)


class EvergrantApi(FastAPI):
    """FastAPI inside `outermost`, which answers what never gets to FastAPI's layers."""

    outermost: ASGIApp

    def openapi(self) -> dict[str, Any]:
        return openapi.openapi_schema(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.outermost(scope, receive, send)


def create_app(api: ApiContext, certificates: CertificateHeader | None = None) -> EvergrantApi:
    """The ASGI application over `context`. The caller starts and stops the lease ledger and the relay.
    `certificates`: how the proxy hands on those of apps, for a listener that only the proxy reaches."""
    refresher = RefreshWaiter(api.lease_rows, api.link, api.settings.lease_wait)
    refusals = RefusalLog(api.store)
    networks = CallerNetworks(api.store, enabled=api.settings.detect_new_networks)
    issuer = LeaseIssuer(api, refresher, refusals, networks)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for part in (refresher, refusals, networks):
            await part.stop()
        await api.limits.close()

    app = EvergrantApi(
        title="Evergrant",
        version=VERSION,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load scripts from a CDN
        redoc_url=None,
        openapi_url=None,  # FastAPI's own route makes the document on the event loop
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.state.api, app.state.refresher = api, refresher
    app.state.refusals, app.state.networks = refusals, networks
    app.state.lease_issuer, app.state.judged_pairs = issuer, JudgedPairs(api, issuer)
    app.state.templates, app.state.console = Pages(Logos(api.settings.data_dir / "logos")), ConsolePages()
    app.state.browsers = BrowserSessions(api.settings.public_url, api.ring)
    install_error_handlers(app, api.settings.public_url)
    app.add_exception_handler(404, answer_unknown_path)
    lease_routes = leases.routes(api, issuer)
    app.router.routes.extend([*lease_routes, *_ROUTES.routes])
    app.state.reference = openapi.Reference(app, app.state.templates, api.settings.public_url)
    app.add_middleware(GuessLimit, api=api, templates=app.state.templates)
    app.add_middleware(leases.LeaseMiddleware, routes=lease_routes)
    _add_outer_middleware(app, api, certificates)
    return app


def prepare_routes(app: FastAPI) -> None:
    """Have FastAPI prepare the routes before the first request, which would have to wait up to half a second
    for it, with every other request of the process."""
    scope = {"type": "http", "method": "GET", "path": "/-", "headers": []}
    for route in app.routes:
        route.matches(scope)  # no route has this path, so each is looked at


def _add_outer_middleware(app: EvergrantApi, api: ApiContext, certificates: CertificateHeader | None) -> None:
    """From the inside out."""
    if certificates is not None:
        app.add_middleware(TrustedHop, header=certificates, base_url=api.settings.public_url)
    if api.settings.temporal_ui_url:
        app.add_middleware(stories.UiOrigin, ui_url=api.settings.temporal_ui_url)
    lease_wait_s = api.settings.lease_wait.total_seconds()
    app.add_middleware(Deadline, base_url=api.settings.public_url, lease_wait_s=lease_wait_s)
    app.add_middleware(Envelope, base_url=api.settings.public_url, version=VERSION)
    app.outermost = partial(FastAPI.__call__, app)
    if certificates is None:  # what a proxy hands on is part of no pair
        app.outermost = PairMiddleware(app.outermost, app.state.judged_pairs, VERSION, lease_wait_s)
    if traces.is_enabled():
        app.outermost = traces.TracingMiddleware(app.outermost)  # the envelope reads its span
