"""Servers that Evergrant knows nothing of but the issuer: no definition, no field beside the client.

`docs/flows.md` names what these and other servers do differently.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from examples.demo.evergrant_api import ApiProblem
from tests.e2e.world import World, refused, running
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.issuers import Issuer, running_issuer

DJANGO, MCP = "django-oidc-provider", "mcp-authorization-server"
ASKED: dict[str, dict[str, Any]] = {
    DJANGO: {
        "client_id": "evergrant",
        "client_secret": "a-client-secret",
        "default_scopes": ["openid", "email"],
    },
    MCP: {"registration": "dynamic"},
}

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


class Issuers(World):
    """With the servers."""

    servers: dict[str, Issuer]

    async def connected(self, name: str) -> dict[str, Any]:
        """A connection whose subject has just consented."""
        begun = await self.begin(name, flow="authorization_code")
        landing = await self.servers[name].consent(begun["connect_url"])
        assert landing.response is not None
        assert landing.response.status_code == 200, landing.response.text
        return await self.active(begun)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Issuers]:
    data = tmp_path_factory.mktemp("issuers") / "data"
    async with running_issuer(DJANGO) as django, running_issuer(MCP) as mcp:
        allowed = [server.issuer.removesuffix("/openid").removesuffix("/") for server in (django, mcp)]
        async with running(Issuers, data, *allowed) as world:
            world.servers = {DJANGO: django, MCP: mcp}
            yield world


@pytest.mark.parametrize(("name", "revocation"), [(DJANGO, "not_supported"), (MCP, "confirmed")])
async def test_the_issuer_alone_is_enough(world: Issuers, name: str, revocation: str):
    """Consent, leases, rotation, a dead refresh token, another consent, a refused secret, revocation."""
    server = world.servers[name]
    made = await world.integration(name, {"provider": "generic", "issuer": server.issuer, **ASKED[name]})
    await server.control(redirect_uri=made["redirect_uri"])
    connection = await world.connected(name)
    assert (await world.api.lease(name, "sam"))["token_type"] == "Bearer"
    for generation in (2, 3):
        assert (await world.refreshed(connection))["generation"] == generation
    await server.control(end_grants=True)
    with contextlib.suppress(ApiProblem):  # or the row as it stands by then, whichever is there first
        await world.refreshed(connection)
    dead = await world.api.state(connection["id"], "needs_reauth", PATIENCE_S)
    assert (dead["reason"], dead["repairer"]) == ("grant_rejected", "subject")
    again = await world.connected(name)
    assert (again["id"], await server.control()) == (connection["id"], 1)
    await server.control(secret_works=False)
    with refused("client_rejected", 424):
        await world.refreshed(again)
    failing = await world.api.connection(again["id"])
    assert (failing["state"], failing["repairer"]) == ("active", "integration_admin")
    await server.control(secret_works=True)
    assert (await world.revoked(again))["revocation"] == revocation
    assert await server.control() == (0 if revocation == "confirmed" else 1)


async def test_rfc8414_3_3_the_admin_is_told_the_issuer_that_the_server_names(world: Issuers):
    server = world.servers[MCP]
    body = {"provider": "generic", "issuer": server.issuer.removesuffix("/"), **ASKED[MCP]}
    with refused("discovery_failed", 424) as raised:
        await world.integration("without-its-slash", body)
    assert f"another issuer: {server.issuer}" in str(raised.value)
