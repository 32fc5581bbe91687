"""`python -m evergrant_server gateway`, as a process with the key file of its role."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import grpc.aio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import KeyPurpose, KeyRing, Role
from evergrant_server.gateway.envoy.grpc_service import CheckResponse
from examples.demo.processes import ROOT
from tests.fakes.api import Api, api
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.ports import free_port

__all__ = ["api"]


async def test_it_serves_with_lease_keys_alone_and_ends_when_it_is_told_to(api: Api, tmp_path: Path):
    settings, keys, port = api.parts.settings, tmp_path / "gateway-keys.json", free_port()
    envoy_port = free_port()
    KeyRing.open(settings.key_path, Role.OPERATOR).export(keys, Role.GATEWAY)
    with pytest.raises(Failure) as unusable:
        KeyRing.open(keys, Role.API)
    assert unusable.value.code is ErrorCode.KEY_UNAVAILABLE
    assert not KeyRing.open(keys, Role.GATEWAY).holds(KeyPurpose.INTAKE)
    connection = await api.active(await api.integration(provider="generic"), lifetime=None)
    key = await api.app_with("agent", Action.PROXY)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "evergrant_server", "gateway", "--data-dir", str(tmp_path)),
        *("--database-url", settings.database_url, "--key-file", str(keys), "--gateway-port", str(port)),
        cwd=ROOT,
        env={
            **os.environ,
            "EVERGRANT_TEMPORAL_ADDRESS": "127.0.0.1:9",
            "EVERGRANT_GATEWAY_ENVOY_PORT": str(envoy_port),
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:

            async def ready() -> dict[str, object] | None:
                assert child.returncode is None, await child.stderr.read()
                try:
                    return (await client.get("/readyz")).json()
                except httpx2.TransportError:
                    return None

            checks = {"store": "ok", "keys": "ok", "temporal": "temporal_unavailable"}
            assert await eventually(ready) == {"ready": True, "checks": checks}
            headers = {"Authorization": f"Bearer {key}"}
            unknown = await client.get(f"/v1/proxy/{connection.id}/x", headers=headers)
            assert (unknown.status_code, unknown.headers["evergrant-error"]) == (424, "api_unknown")
            http = httpx2.AsyncClient(headers=headers, timeout=PATIENCE_S)
            tools = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
            async with http, Client(tools, mode="legacy") as mcp:
                listed = (await mcp.call_tool("list_connections")).structured_content
            assert [it["connection_id"] for it in listed["connections"]] == [connection.id]
            assert "evergrant_proxy_open" in (await client.get("/metrics")).text
            assert (await client.get("/console")).status_code == 404, "nothing of the API's is here"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{envoy_port}") as channel:
            check = channel.unary_unary("/envoy.service.auth.v3.Authorization/Check")
            refused = CheckResponse.FromString(await check(b"", timeout=PATIENCE_S))
            assert (refused.status.code, refused.denied_response.status.code) == (7, 403)
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        _, said = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert child.returncode == 0, said.decode()
    assert b"Traceback" not in said
