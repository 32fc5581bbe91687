"""`evergrant deliver file` beside the real platform: a good token at every moment, until a revocation."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from examples.demo.authorization_server import AuthorizationServer
from tests.e2e.world import COMMAND, World, at, running
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.providers.authorization_server import running_authorization_server

TOKEN_S = 8


class DeliverWorld(World):
    server: AuthorizationServer


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DeliverWorld]:
    (tmp_path / "as").mkdir()
    seconds = ("--access-token-seconds", str(TOKEN_S), "--grace", "120")
    async with (
        running_authorization_server(tmp_path / "as", *seconds) as server,
        running(DeliverWorld, tmp_path / "data", server.issuer, actions=("token", "connect")) as world,
    ):
        made = await world.integration("crm", at(server, refresh={"rotation": "grace", "grace_s": 120}))
        await server.register(made["redirect_uri"])
        world.server = server
        yield world


@pytest.mark.soak
async def test_a_file_is_kept_fresh_and_deleted_on_revocation(world: DeliverWorld, tmp_path: Path):
    begun = await world.begin("crm", "alice")
    await world.server.scripted_consent(begun["connect_url"])
    await world.active(begun)
    path = tmp_path / "token"
    env = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    env |= {"EVERGRANT_URL": world.platform.api, "EVERGRANT_API_KEY": world.key}
    times = ("--look", "1", "--lease", "2", "--ahead", "4")
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        COMMAND, "deliver", "file", str(path), "crm", "alice", *times, env=env, stderr=pipe
    )
    seen: list[str] = []

    async def read() -> int:
        """How many tokens were seen. Once there is one, there is one at every moment."""
        if seen or path.exists():
            token = path.read_text()
            if token not in seen:
                assert (await world.server.whoami(token)).status_code == 200
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                seen.append(token)
        return len(seen)

    try:
        await eventually(read, lambda number: number >= 3)
        await world.revoked(begun)

        async def is_there() -> bool:
            return path.exists()

        await eventually(is_there, lambda there: not there)
    finally:
        child.terminate()
        _, err = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert child.returncode == 0
    lines = err.decode()
    assert f"deleted {path}: connection_revoked" in lines
    assert not any(token in lines for token in seen)
