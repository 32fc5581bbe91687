"""Servers that Evergrant knows nothing of but the issuer: no definition, no field beside the client.

`docs/flows.md` names what these and other servers do differently.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from examples.demo.evergrant_api import ApiProblem
from examples.demo.subject import Subject
from tests.e2e.world import World, refused, running
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.issuers import Issuer, running_issuer
from tests.fakes.providers.real_servers import CloudflareWorkersOAuthProvider

DJANGO, MCP = "django-oidc-provider", "mcp-authorization-server"
RESOURCE = "https://api.example/v1"  # of tests/fakes/servers/cloudflare.mjs
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
    cloudflare: CloudflareWorkersOAuthProvider

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
    cloudflare = CloudflareWorkersOAuthProvider.running(tmp_path_factory.mktemp("cloudflare"))
    async with running_issuer(DJANGO) as django, running_issuer(MCP) as mcp, cloudflare as worker:
        issuers = (django.issuer, mcp.issuer, worker.issuer)
        allowed = [issuer.removesuffix("/openid").removesuffix("/") for issuer in issuers]
        async with running(Issuers, data, *allowed) as world:
            world.servers, world.cloudflare = {DJANGO: django, MCP: mcp}, worker
            yield world


@pytest.mark.parametrize(
    ("name", "revocation"),
    [pytest.param(DJANGO, "not_supported", marks=pytest.mark.soak), (MCP, "confirmed")],
)
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


async def test_rfc9728_4_tokens_are_for_the_one_resource_that_the_issuer_lists(world: Issuers):
    """Nobody named it: neither the admin nor the app."""
    server, name = world.cloudflare, "cloudflare"
    body = {"provider": "generic", "issuer": server.issuer, "default_scopes": ["read"]}
    made = await world.integration(name, {**body, "client_id": "not-yet", "client_secret": "not-yet"})
    assert made["protected_resources"] == [RESOURCE]
    client = await server.control(redirect_uri=made["redirect_uri"])
    credentials = {"client_id": client["client_id"], "client_secret": client["client_secret"]}
    await world.integration(name, {**body, **credentials})
    begun = await world.begin(name, flow="authorization_code")
    async with Subject("sam", "a-password") as subject:
        landing = await subject.consent(begun["connect_url"])
    assert landing.response is not None
    assert landing.response.status_code == 200, landing.response.text
    assert (await world.active(begun))["resources"] == [RESOURCE]
    assert (await server.control())["resource"] == RESOURCE
    assert (await world.refreshed(begun))["generation"] == 2
    token = (await world.api.lease(name, "sam"))["access_token"]
    assert (await server.control(token=token))["valid"]
