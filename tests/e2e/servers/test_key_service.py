"""API and gateway as processes without a key file: a real OpenBao wraps their keys, each by its token."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.root_keys import first_roots
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.key_services.openbao import OpenBaoWorld
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.warm import WarmProcess
from tests.fakes.ports import free_port

LEASE = {"integration": "crm", "subject": "user-1"}


class Served:
    """A database whose keys OpenBao has wrapped, and the processes that use it."""

    def __init__(self, world: OpenBaoWorld, api: Api, folder: Path) -> None:
        self.world, self.api, self._folder = world, api, folder

    async def environment(self, role: str, port: int) -> dict[str, str]:
        token = self._folder / f"token-{role}"
        token.write_text(await self.world.principal(role))
        url = self.world.url.partition("?")[0]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
        return kept | {
            "EVERGRANT_KEY_SERVICE": f"{url}?token-file={token}",
            "EVERGRANT_KEY_HOLD": "5",
            "EVERGRANT_TENANT": TENANT,
            "EVERGRANT_DATA_DIR": str(self._folder / role),
            "EVERGRANT_DATABASE_URL": self.api.parts.settings.database_url,
            "EVERGRANT_TEMPORAL_ADDRESS": "127.0.0.1:9",
            "EVERGRANT_PORT": str(port),
            "EVERGRANT_GATEWAY_PORT": str(port),
        }

    async def start(self, role: str, port: int) -> WarmProcess:
        """Its output goes to `log`."""
        words, log = ["serve" if role == "api" else "gateway"], self.log(role)
        return await WarmProcess.start(words, await self.environment(role, port), log, log)

    def log(self, role: str) -> Path:
        return self._folder / f"{role}.log"

    @asynccontextmanager
    async def running(self, role: str) -> AsyncIterator[httpx2.AsyncClient]:
        port = free_port()
        child = await self.start(role, port)
        try:
            url = f"http://127.0.0.1:{port}"
            async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE_S) as client:
                await eventually(lambda: keys_of(client), lambda keys: keys == "ok" or child.returncode)
                yield client
        finally:
            child.terminate()
            status = await asyncio.wait_for(child.wait(), PATIENCE_S)
        assert status == 0, self.log(role).read_text()


async def keys_of(client: httpx2.AsyncClient) -> str | None:
    """What `/readyz` says of the keys."""
    try:
        return (await client.get("/readyz")).json()["checks"]["keys"]
    except httpx2.TransportError:
        return None


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    folder = tmp_path / "bao"
    await asyncio.to_thread(folder.mkdir)
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(OpenBaoWorld.running(folder))
        api = await stack.enter_async_context(running_api(tmp_path, now=datetime.now(UTC)))
        file, worker = api.worker.ring.file, await stack.enter_async_context(world.as_role("worker"))
        assert file is not None
        rows = await first_roots(worker, file, api.clock.now(), lie_in_file=False)
        async with api.worker.write() as tx:
            for root, wrapped in rows:
                await tx.root_keys.add(root, wrapped)
        api.parts.settings.key_path.unlink()
        yield Served(world, api, folder)


async def test_they_serve_until_the_service_is_away_too_long_and_again_when_it_is_back(served: Served):
    """Away, refused to the API's principal, gone: each ends by itself, without a restart."""
    api = served.api
    _, key = await api.active_for("reader", Action.TOKEN)
    async with served.running("api") as http, served.running("gateway") as gateway:
        http.headers["Authorization"] = f"Bearer {key}"

        async def lease() -> httpx2.Response:
            return await http.post("/v1/lease", json=LEASE)

        for _ in range(3):
            assert (await lease()).json()["access_token"] == "at-1"
        async with served.world.closed(ServicePurpose.LEASE):
            assert (await lease()).json()["access_token"] == "at-1", (
                "for what is held the service isn't asked"
            )
            refused = await eventually(lease, lambda answer: answer.status_code != 200)
            assert (refused.status_code, refused.json()["code"]) == (503, "key_unavailable")
            assert refused.headers["Retry-After"] == "5"
            await eventually(lambda: keys_of(gateway), lambda keys: keys == "key_unavailable")
        answer = await eventually(lease, lambda answer: answer.status_code == 200)
        assert answer.json()["access_token"] == "at-1"
        await eventually(lambda: keys_of(gateway), lambda keys: keys == "ok")
        for taken_away, code in (
            (served.world.without_right("api", ServicePurpose.LEASE), "key_denied"),
            (served.world.soft_deleted(ServicePurpose.LEASE), "key_gone"),
        ):
            async with taken_away:
                refused = await eventually(lease, lambda answer: answer.status_code != 200)
                assert (refused.json()["code"], refused.headers.get("Retry-After")) == (code, None)
                assert "evergrant-lease" not in refused.text
            await eventually(lease, lambda answer: answer.status_code == 200)


@pytest.mark.parametrize("role", ["api", "gateway"])
async def test_one_that_starts_while_the_service_is_away_names_the_key(served: Served, role: str):
    async with served.world.closed(ServicePurpose.LEASE):
        child = await served.start(role, free_port())
        assert await asyncio.wait_for(child.wait(), PATIENCE_S) == 1
    output = served.log(role).read_text()
    for name in ("key_unavailable", "root_key", "vault:transit/evergrant-"):
        assert name in output
    assert "Traceback" not in output
