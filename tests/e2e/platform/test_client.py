"""The client against the real platform and a real authorization server, from consent to revocation."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from evergrant import AsyncEvergrant, ConsentRequired, Evergrant, Lease, ReconnectNeeded, State

from examples.demo.authorization_server import AuthorizationServer
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.platform import EvergrantProcess
from examples.demo.waiting import wait_until
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]
COMMAND = str(Path(sys.executable).parent / "evergrant")
TOKEN_S = 8
ALICE = ("crm", "alice")


@dataclass(frozen=True)
class World:
    platform: EvergrantProcess
    server: AuthorizationServer
    key: str

    @property
    def target(self) -> dict[str, Any]:
        return {"url": self.platform.api, "api_key": self.key}

    async def run(self, *command: str) -> tuple[int | None, str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
        env = {**kept, "EVERGRANT_URL": self.platform.api, "EVERGRANT_API_KEY": self.key}
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*command, env=env, stdout=pipe, stderr=pipe)
        out, err = await asyncio.wait_for(child.communicate(), PATIENCE_S)
        return child.returncode, out.decode(), err.decode()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "as").mkdir()
    seconds = ("--access-token-seconds", str(TOKEN_S), "--grace", "120")
    server = await AuthorizationServer.start(tmp_path / "as", *seconds)
    try:
        platform = await EvergrantProcess.start(tmp_path / "data", server.issuer.removeprefix("http://"))
        try:
            yield World(platform, server, await configured(platform, server))
        finally:
            await platform.stop()
    finally:
        await server.stop()


async def configured(platform: EvergrantProcess, server: AuthorizationServer) -> str:
    """An integration `crm`, and the key of an app that may use alice's connections."""
    async with EvergrantApi(platform.api, platform.admin_key) as admin:
        body = {
            "provider": "generic",
            "issuer": server.issuer,
            "client_id": server.client_id,
            "client_secret": server.client_secret,
            "default_scopes": ["read"],
            "refresh": {"rotation": "grace", "grace_s": 120},
        }
        made = await admin.put("/v1/integrations/crm", body)
        await server.register(made["redirect_uri"])

        async def ready() -> bool | None:
            return (await admin.get("/v1/integrations/crm"))["state"] == "ready" or None

        await wait_until(ready, "the issuer's metadata", PATIENCE_S)
        await admin.put("/v1/apps/report", {})
        permit = {"integration": "crm", "subjects": ["alice"], "actions": ["token", "connect", "admin"]}
        await admin.put("/v1/apps/report/permits/crm", permit)
        return (await admin.post("/v1/apps/report/keys"))["key"]


def five_lines() -> str:
    """The README's program, with what it leaves out."""
    text = (ROOT / "README.md").read_text().partition("## Five lines of Python")[2]
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert program is not None
    said = program[1].replace("...  # call", "print('token', len(token))  # call", 1)
    return said.replace("...  # send", "print('open', url)  # send", 1)


async def test_from_consent_to_revocation_through_the_client(world: World):
    status, out, err = await world.run(sys.executable, "-c", five_lines())
    assert (status, out.split()[0], err) == (0, "open", "")

    with Evergrant(**world.target) as blocking:
        needed = await asyncio.to_thread(blocking.lease, *ALICE)
        assert isinstance(needed, ConsentRequired)
        with pytest.raises(ReconnectNeeded) as missing:
            await asyncio.to_thread(blocking.token, *ALICE)
        assert missing.value.connection_id == needed.connection_id

        landing = await world.server.scripted_consent(needed.connect_url)
        assert landing.response is not None
        assert landing.response.status_code == 200
        waited = await asyncio.to_thread(
            blocking.wait_for_consent, needed.connection_id, timedelta(seconds=30)
        )
        assert waited.state is State.ACTIVE

        lease = await asyncio.to_thread(blocking.lease, *ALICE)
        assert isinstance(lease, Lease)
        assert (await world.server.whoami(lease.access_token)).json()["scopes"] == ["read"]
        assert blocking.lease(*ALICE) is lease  # from the cache: on this thread, without a request

    status, out, err = await world.run(sys.executable, "-c", five_lines())
    assert (status, out.split()[0], err) == (0, "token", "")
    await asynchronously(world, needed.connection_id)


async def asynchronously(world: World, connection_id: str) -> None:
    started = datetime.now(UTC)
    # this client's clock stands still, so that it hands out a token that the resource refuses
    async with AsyncEvergrant(**world.target, clock=lambda: started) as client:
        first = await client.lease(*ALICE)
        assert isinstance(first, Lease)
        await expired(world, first)
        assert await client.lease(*ALICE) is first

        auth = client.auth(*ALICE, origins=world.server.issuer)
        async with httpx2.AsyncClient(auth=auth, trust_env=False, timeout=PATIENCE_S) as http:
            url = f"{world.server.issuer}/api/whoami"
            answers = await asyncio.gather(*(http.get(url) for _ in range(5)))
        assert [it.status_code for it in answers] == [200] * 5
        second = await client.lease(*ALICE)
        assert isinstance(second, Lease)
        assert second.generation > first.generation
        late = await client.report_refused(connection_id, first.generation)
        assert late.generation >= second.generation, "who reports an older one is given the newer"

        await compared(world, connection_id)
        assert (await client.revoke(connection_id, "the test is over")).state is State.REVOKING
        with pytest.raises(ReconnectNeeded):
            await client.token(*ALICE)

        async def revoked() -> bool | None:
            return (await client.connection(connection_id)).state is State.REVOKED or None

        await wait_until(revoked, "the provider's confirmation", PATIENCE_S)
        assert "lease.issued" in [it.action async for it in client.audit(connection_id)]
    assert await world.server.introspect(second.access_token) == {"active": False}


async def expired(world: World, lease: Lease) -> None:
    async def refused() -> bool | None:
        return (await world.server.whoami(lease.access_token)).status_code == 401 or None

    await wait_until(refused, "the token's expiry", PATIENCE_S)


async def compared(world: World, connection_id: str) -> None:
    """`connections get --live` says what the workflow says; a wrong key is one line."""
    status, out, err = await world.run(COMMAND, "connections", "get", connection_id, "--live", "-o", "json")
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert shown["live"]["state"] == "active"
    assert "state" not in shown["differs"]
    status, out, err = await world.run("env", "EVERGRANT_API_KEY=evg_wrong", COMMAND, "token", *ALICE)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("evergrant: unauthenticated: ")
