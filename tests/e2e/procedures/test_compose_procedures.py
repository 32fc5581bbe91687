"""operations.md and upgrades.md, their own commands for compose: rotation, backup, restore and upgrade.

Afterwards each container has what its role needs, and nothing old."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from examples.demo.evergrant_api import EvergrantApi
from tests.e2e.world import define, leave
from tests.fakes.certificates import LoopbackTls, loopback_tls
from tests.fakes.databases import postgres
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.docker import SERVED, Site, blocks, site
from tests.fakes.providers.scripted_provider import ScriptedProvider, raw

GUIDE = Path(__file__).parents[3] / "docs/guide"
PAGE, UPGRADES = GUIDE / "operations.md", GUIDE / "upgrades.md"
ROLES = {"worker-1": "worker", "worker-2": "worker", "api": "api", "gateway": "gateway"}


@dataclass
class Tenant:
    """A tenant with a connection that its app leases, and calls the provider's API with."""

    place: "Installed"
    admin: EvergrantApi
    app: EvergrantApi
    key: str
    connection_id: str

    async def requests_work(self) -> None:
        """A lease by the API, and a call through the gateway."""
        lease = await self.app.lease("crm", "alice")
        assert self.place.idp.active(lease["access_token"])
        self.place.idp.script(raw(b"it is alice"), at="api/me")
        url = f"{self.place.gateway_url}/v1/proxy/{self.connection_id}/me"
        async with httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"}, timeout=PATIENCE_S
        ) as client:
            called = await client.get(url)
        assert (called.status_code, called.text) == (200, "it is alice"), called.text
        assert self.place.idp.calls[-1].headers["authorization"] == f"Bearer {lease['access_token']}"


@dataclass
class Installed:
    """What `docker compose up` has started."""

    place: Site
    idp: ScriptedProvider
    tls: LoopbackTls
    stack: AsyncExitStack

    @property
    def gateway_url(self) -> str:
        return self.place.gateway_url

    async def tenant(self, name: str) -> Tenant:
        """A new tenant: the keys of its own are made now, under the current roots."""
        words = f"docker compose run --rm --no-deps -e EVERGRANT_TENANT={name} worker-1 keys bootstrap"
        admin_key = (await self.place.shell(words)).strip()
        admin = await self.stack.enter_async_context(EvergrantApi(self.place.url, admin_key))
        document = {
            "name": "acme-crm",
            "display_name": "Acme",
            "auth_modes": ["authorization_code"],
            "client_auth": "client_secret_post",
            "refresh_rotates": True,
            "api_base_url": self.idp.url("api"),
        }
        places = {f"{end}_endpoint": self.idp.url(path) for end, path in _ENDPOINTS.items()}
        await define(admin, document | places)
        body = {"provider": "acme-crm", "client_id": self.idp.client_id, "binding": "none"}
        await admin.put("/v1/integrations/crm", {**body, "client_secret": self.idp.client_secret})
        await eventually(
            lambda: admin.get("/v1/integrations/crm"), lambda integration: integration["state"] == "ready"
        )
        await admin.put("/v1/apps/report", {})
        permit = {"integration": "crm", "subjects": ["alice"], "actions": ["token", "connect", "proxy"]}
        await admin.put("/v1/apps/report/permits/crm", permit)
        key = (await admin.post("/v1/apps/report/keys"))["key"]
        app = await self.stack.enter_async_context(EvergrantApi(self.place.url, key))
        connection = await app.post("/v1/connections", {"integration": "crm", "subject": "alice"})
        async with httpx2.AsyncClient(verify=self.tls.trust, timeout=PATIENCE_S) as browser:
            consented = await browser.get(await leave(browser, connection["connect_url"]))
            await browser.get(consented.headers["location"], follow_redirects=True)
        await app.state(connection["id"], "active", PATIENCE_S)
        return Tenant(self, admin, app, key, connection["id"])

    async def follow(self, heading: str, page: Path = PAGE) -> None:
        """Run the section's commands as they stand on the page."""
        for block in blocks(page, heading, "compose"):
            await self.place.shell(block)

    async def restored(self, first: list[str]) -> None:
        """Restore the backup by the page's commands. Apps wait until the connections are compared."""
        heading = "## The store was restored from a backup"
        here, *following = blocks(PAGE, heading, "compose")
        (elsewhere,) = blocks(PAGE, heading, "compose-new-host")
        (restore,) = (block for block in (here, elsewhere) if block.startswith(tuple(first)))
        for block in (restore, *following):
            if "reconcile" in block:
                assert set(self.place.running) == {"worker-1", "worker-2"}
            await self.place.shell(block)
        assert set(self.place.running) == set(SERVED)

    async def diagnosed(self, service: str) -> dict[str, dict[str, Any]]:
        """What `doctor` finds in a container, by check."""
        words = (
            f"docker compose exec {service} python -m evergrant_server doctor --role {ROLES[service]} -o json"
        )
        findings = json.loads(await self.place.shell(words + " || true"))
        return {finding["check"]: finding for finding in findings}

    async def doctor_is_content(self) -> None:
        for service in SERVED:
            findings = (await self.diagnosed(service)).values()
            problems = [finding for finding in findings if not finding["ok"]]
            assert problems == [], f"{service}: {problems}"

    def roots(self, service: str) -> dict[str, str]:
        """The current root of each purpose in the key file of a container."""
        file = self.place.folder / "keys" / ROLES[service] / "keys.json"
        purposes = json.loads(file.read_bytes())["purposes"]
        return {purpose: roots["current"] for purpose, roots in purposes.items()}


_ENDPOINTS = {"authorization": "authorize", "token": "token", "revocation": "revoke"}


@asynccontextmanager
async def installed(folder: Path) -> AsyncIterator[Installed]:
    async with AsyncExitStack() as stack:
        tls = loopback_tls(folder)
        idp = await stack.enter_async_context(ScriptedProvider(tls=tls))
        place = await stack.enter_async_context(site(folder, idp))
        await place.shell("docker compose up --build --detach")
        yield Installed(place, idp, tls, stack)


@pytest.mark.soak
async def test_a_rotation_two_losses_and_an_upgrade_by_the_pages_commands(tmp_path: Path):
    """The backup is older than the key file, the copies of it, and a revocation; then the host is lost; then
    a newer version comes."""
    async with installed(tmp_path) as operator:
        stays, leaves = await operator.tenant("acme"), await operator.tenant("umbrella")
        await operator.follow("## Backups")
        await rotation(operator, stays)
        await leaves.app.post(f"/v1/connections/{leaves.connection_id}/revoke", {"reason": "they left"})
        await leaves.app.state(leaves.connection_id, "revoked", PATIENCE_S)
        await operator.restored(["docker compose stop"])
        await stays.requests_work()
        await leaves.app.state(leaves.connection_id, "revoked", PATIENCE_S)
        await (await operator.tenant("initech")).requests_work()

        await operator.follow("## Backups")
        await operator.place.lose_volumes()
        await operator.restored(["docker compose up --detach postgres"])
        await stays.requests_work()
        await upgrade(operator, stays)


async def rotation(operator: Installed, tenant: Tenant) -> None:
    """It reaches every container."""
    before = {service: operator.roots(service) for service in SERVED}
    await operator.follow("### Rotating the key file")
    for service in SERVED:
        assert operator.roots(service)["lease"] == operator.roots("worker-1")["lease"]
        assert operator.roots(service)["lease"] != before[service]["lease"]
    words = "docker compose exec worker-1 python -m evergrant_server keys status -o json"
    roots = json.loads(await operator.place.shell(words))["roots"]
    under = {root["id"]: root["tenant_keys"] for root in roots if root["purpose"] == "lease"}
    assert under.pop(before["api"]["lease"]) == 0
    assert min(under.values()) > 0
    await tenant.requests_work()
    await operator.doctor_is_content()


async def upgrade(operator: Installed, tenant: Tenant) -> None:
    """It leaves nothing of the older version, whose gateway needed one secret less, and whose database had a
    table less."""
    copy = operator.place.folder / "keys/gateway/keys.json"
    document = json.loads(copy.read_bytes())
    del document["derived"]["mcp-session"]
    copy.write_text(json.dumps(document))
    await postgres().admin("REVOKE ALL ON usage FROM evergrant_gateway", database="evergrant")
    del operator.place.beside_init[:]
    await operator.follow("## With compose", UPGRADES)
    assert operator.place.beside_init == [set(SERVED)], "what still runs goes on with the new schema"
    assert not operator.place.outdated
    await tenant.requests_work()
    await operator.doctor_is_content()
