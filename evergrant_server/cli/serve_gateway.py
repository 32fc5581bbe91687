"""Runs the gateway in uvicorn (ADR 0055)."""

import asyncio
from contextlib import AsyncExitStack

from starlette.types import ASGIApp

from evergrant_server.audit.lease_ledger import new_lease_shard
from evergrant_server.cli.machine import require_free_port
from evergrant_server.cli.serve import check_keys_and_store
from evergrant_server.crypto.keyring import Role
from evergrant_server.egress import EgressPolicy, StreamingTransport
from evergrant_server.gateway.app import GatewayApp
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.outcomes import OutcomeLog
from evergrant_server.gateway.server import Lifespan, make_server
from evergrant_server.process import tune_garbage_collector
from evergrant_server.settings import Settings
from evergrant_server.store.database.engine import Pool
from evergrant_server.telemetry import traces
from evergrant_server.temporal_link.telemetry import flush_telemetry, start_telemetry
from evergrant_server.wiring.api_parts import open_api


def serve_gateway(settings: Settings) -> None:
    """Serve until a signal ends the process. Checks port, keys and store before.

    Raises Failure for keys and store, BadSettings for a port that is taken.
    """
    require_free_port("EVERGRANT_GATEWAY_PORT", settings.gateway_host, settings.gateway_port)
    if settings.gateway_envoy_port:
        require_free_port("EVERGRANT_GATEWAY_ENVOY_PORT", settings.gateway_host, settings.gateway_envoy_port)
    asyncio.run(check_keys_and_store(settings, Role.GATEWAY))
    lifespan = Lifespan(lambda opened: _open_traced(settings, opened))
    drain_s = settings.gateway_drain.total_seconds()
    listener = {"host": settings.gateway_host, "port": settings.gateway_port}
    make_server(lifespan, drain_s=drain_s, **listener).run()
    if lifespan.failure is not None:
        raise lifespan.failure


async def _open_traced(settings: Settings, opened: AsyncExitStack) -> ASGIApp:
    app = await open_gateway(settings, opened)
    return traces.TracingMiddleware(app) if traces.is_enabled() else app


async def open_gateway(settings: Settings, opened: AsyncExitStack) -> GatewayApp:
    """The gateway's application; `opened` closes its parts."""
    start_telemetry(settings, "evergrant-gateway")
    opened.push_async_callback(asyncio.to_thread, flush_telemetry)
    _, api = await opened.enter_async_context(open_api(settings, Role.GATEWAY))
    policy = EgressPolicy(settings.egress_allow, settings.start_command, settings.trusted_ca_file)
    transport = StreamingTransport(policy, silence_s=settings.gateway_silence.total_seconds())
    outcomes = OutcomeLog(api.store.in_pool(Pool.BACKGROUND), new_lease_shard(Role.GATEWAY))
    outcomes.start()
    parts = GatewayParts(api, transport, outcomes)
    opened.push_async_callback(parts.stop)
    if settings.gateway_envoy_port:
        from evergrant_server.gateway.envoy.grpc_service import envoy_grpc  # gRPC is large, and few need it

        host = f"[{settings.gateway_host}]" if ":" in settings.gateway_host else settings.gateway_host
        address = f"{host}:{settings.gateway_envoy_port}"
        drain_s = settings.gateway_drain.total_seconds()
        await opened.enter_async_context(envoy_grpc(parts, address, drain_s=drain_s))
    tune_garbage_collector()
    return await opened.enter_async_context(GatewayApp(parts).running())
