"""The application: every route in plain sight."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from evergrant_server.api import audit, health, openapi
from evergrant_server.api.apps import keys
from evergrant_server.api.apps import routes as apps
from evergrant_server.api.connections import account_choice, commands
from evergrant_server.api.connections import routes as connections
from evergrant_server.api.http import problems
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.deadline import Deadline
from evergrant_server.api.http.middleware import Envelope
from evergrant_server.api.integrations import catalogue, client_metadata, definition_rollout
from evergrant_server.api.integrations import routes as integrations
from evergrant_server.api.leases import oauth1_signatures
from evergrant_server.api.leases import routes as leases
from evergrant_server.api.pages import callback, connect, fragment
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.api.provider_events import inbound, receivers
from evergrant_server.api.transfer import routes as transfer
from evergrant_server.api.webhooks import deliveries
from evergrant_server.api.webhooks import routes as webhooks
from evergrant_server.telemetry import traces

VERSION = "0.1.0"

# FastAPI's own spans quote the path, which may hold a connect link, and its logs quote exceptions.
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

ROUTERS = (
    health.router,
    catalogue.router,
    definition_rollout.router,
    client_metadata.router,
    integrations.router,
    apps.router,
    keys.router,
    transfer.router,  # before the routes that take any id in the place of its words
    connections.router,
    account_choice.router,
    commands.router,
    oauth1_signatures.router,
    audit.router,
    webhooks.router,
    deliveries.router,
    receivers.router,
    inbound.router,
    connect.router,
    callback.router,
    fragment.router,
    account_choice.page_router,
    openapi.router,
)


def create_app(parts: ApiContext) -> FastAPI:
    """The ASGI application over `parts`. The caller starts and stops the ledger and the relay."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await parts.freshening.stop()

    app = FastAPI(
        title="Evergrant",
        version=VERSION,
        description="Managed OAuth: name a connection, get a working token or who must do what.",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.state.parts = parts
    app.state.subjects = SubjectPages(parts)
    problems.install_error_handlers(app, parts.settings.public_url)
    lease_routes = leases.routes(parts)
    app.router.routes.extend(lease_routes)
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: _openapi(app)
    app.add_middleware(leases.LeaseMiddleware, routes=lease_routes)
    lease_wait_s = parts.settings.lease_wait.total_seconds()
    app.add_middleware(Deadline, base_url=parts.settings.public_url, lease_wait_s=lease_wait_s)
    app.add_middleware(Envelope, base_url=parts.settings.public_url, version=VERSION)
    if traces.is_enabled():
        app.add_middleware(traces.TracingMiddleware)  # around the envelope, which reads the span
    return app


def _openapi(app: FastAPI) -> dict[str, object]:
    if app.openapi_schema is None:
        app.openapi_schema = openapi.openapi_schema(app)
    return app.openapi_schema
