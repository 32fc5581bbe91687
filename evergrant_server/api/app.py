"""The application: every route in plain sight."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from evergrant_server import telemetry_traces
from evergrant_server.api import (
    apps,
    audits,
    callback,
    catalogue,
    choosing,
    commands,
    connect,
    connections,
    documents,
    event_receivers,
    fragment,
    health,
    integrations,
    keys,
    leases,
    onboarding,
    problems,
    reference,
    security_events,
    signing,
    transfer,
    webhook_deliveries,
    webhooks,
)
from evergrant_server.api.deadline import Deadline
from evergrant_server.api.envelope import Envelope
from evergrant_server.api.parts import Parts
from evergrant_server.api.subjects import Subjects

VERSION = "0.1.0"

# FastAPI's own spans quote the path, which may hold a connect link, and its logs quote exceptions.
_NOT_BY_ITSELF: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

ROUTERS = (
    health.router,
    catalogue.router,
    onboarding.router,
    documents.router,
    integrations.router,
    apps.router,
    keys.router,
    transfer.router,  # before the routes that take any id in the place of its words
    connections.router,
    choosing.router,
    commands.router,
    signing.router,
    audits.router,
    webhooks.router,
    webhook_deliveries.router,
    event_receivers.router,
    security_events.router,
    connect.router,
    callback.router,
    fragment.router,
    choosing.pages,
    reference.router,
)


def create_app(parts: Parts) -> FastAPI:
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
        telemetry=_NOT_BY_ITSELF,
    )
    app.state.parts = parts
    app.state.subjects = Subjects(parts)
    problems.install(app, parts.settings.public_url)
    lease_routes = leases.routes(parts)
    app.router.routes.extend(lease_routes)
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: _described(app)
    app.add_middleware(leases.Ahead, routes=lease_routes)
    lease_wait_s = parts.settings.lease_wait.total_seconds()
    app.add_middleware(Deadline, base_url=parts.settings.public_url, lease_wait_s=lease_wait_s)
    app.add_middleware(Envelope, base_url=parts.settings.public_url, version=VERSION)
    if telemetry_traces.on():
        app.add_middleware(telemetry_traces.Traced)  # around the envelope, which reads the span
    return app


def _described(app: FastAPI) -> dict[str, object]:
    if app.openapi_schema is None:
        app.openapi_schema = reference.describe(app)
    return app.openapi_schema
