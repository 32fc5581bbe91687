"""An installation whose keys a real OpenBao wraps: from its first keys to a lease, without a key file; the
service goes away and comes back, and the server's commands replace its roots, without a restart.

What API and gateway answer meanwhile: `tests/e2e/servers/test_key_service.py`.
"""

import json
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.crypto.key_services.port import ServicePurpose
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.evergrant_api import ApiProblem
from tests.e2e.world import World, at, running
from tests.fakes.key_services.openbao import OpenBaoWorld
from tests.fakes.patience import eventually
from tests.fakes.platform.warm import warm_output
from tests.fakes.providers.authorization_server import running_authorization_server

HOLD_S = 10  # for which keys are held while the service is away


class Kept(World):
    server: AuthorizationServer
    bao: OpenBaoWorld

    async def outcome(self) -> str:
        """What a lease is answered: `leased`, or the code of the refusal with its status."""
        try:
            lease = await self.api.lease("crm", "alice")
        except ApiProblem as problem:
            return f"{problem.status} {problem.code}"
        return "leased" if lease["access_token"] else "empty"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Kept]:
    for name in ("as", "bao"):
        (tmp_path / name).mkdir()
    async with (
        OpenBaoWorld.running(tmp_path / "bao") as bao,
        running_authorization_server(tmp_path / "as") as server,
        running(
            Kept,
            tmp_path / "data",
            server.issuer,
            settings={"EVERGRANT_KEY_SERVICE": bao.url, "EVERGRANT_KEY_HOLD": f"{HOLD_S}s"},
        ) as world,
    ):
        world.server, world.bao = server, bao
        made = await world.integration("crm", at(server))
        await server.register(made["redirect_uri"])
        yield world


@pytest.mark.soak
async def test_keys_that_can_be_taken_away(world: Kept, tmp_path: Path) -> None:
    assert not (tmp_path / "data" / "keys.json").exists()
    with closing(sqlite3.connect(tmp_path / "data" / "evergrant.db")) as database:
        services = {row[0] for row in database.execute("SELECT service FROM root_key")}
    assert services == {f"vault:transit/evergrant-{purpose}" for purpose in ServicePurpose}

    connection = await world.begin("crm", "alice")
    await world.server.scripted_consent(connection["connect_url"])
    await world.active(connection)
    assert await world.outcome() == "leased"

    async with world.bao.closed(ServicePurpose.LEASE):
        assert await world.outcome() == "leased", "what is held goes on for a while"
        await eventually(world.outcome, lambda outcome: outcome == "503 key_unavailable")
        with pytest.raises(ApiProblem):
            await world.api.post(f"/v1/connections/{connection['id']}/refresh", {"generation": 1})
        assert await world.server.calls("refresh_token") == 0, "a refresh without its keys isn't begun"
    await eventually(world.outcome, lambda outcome: outcome == "leased")
    assert (await world.refreshed(connection))["generation"] > 1

    roots = await commanded(tmp_path, "keys", "status")
    before = {root["id"] for root in roots["roots"]}
    rotation = await commanded(tmp_path, "keys", "rotate", "all")
    progress = rotation["progress"]
    assert (progress["done"], progress["replaced"], progress["destroyed"]) == (True, 5, 5)
    shown = (await commanded(tmp_path, "keys", "status"))["roots"]
    assert {root["id"] for root in shown if root["state"] == "retired"} == before
    for command in ("rewrap", "retire"):
        assert (await commanded(tmp_path, "keys", command, "refresh"))["progress"]["done"]
    assert await world.outcome() == "leased"
    assert (await world.refreshed(connection))["generation"] > 2


async def commanded(folder: Path, *words: str) -> Any:
    """A command of the server's, as JSON, with the settings that `dev` has written."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    env = kept | {"EVERGRANT_DATA_DIR": str(folder / "data")}
    return json.loads(await warm_output([*words, "-o", "json"], env))
