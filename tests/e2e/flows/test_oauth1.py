"""Flows of the old world, through the whole platform: a browser, the API, a worker, Temporal, a lease.

`docs/flows.md` says which server each is tested against, and names these tests.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
import pytest_asyncio
from evergrant import AsyncEvergrant, BadRequest

from evergrant_server import audit
from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.audit import AuditAction
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.forms import read_forms
from tests.e2e.world import leave, refused
from tests.fakes.certificates import LoopbackTls, loopback_tls
from tests.fakes.databases import migrated_sqlite, sqlite_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, prepared, running_worker
from tests.fakes.platform.serving import serving
from tests.fakes.ports import free_port
from tests.fakes.providers.oauth1_server import OAuth1Server, denied
from tests.fakes.providers.scripted_provider import status
from tests.fakes.rows import a_definition
from tests.fakes.temporal import running_temporal

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


@dataclass
class World:
    """API, worker, database and Temporal in this process, and an OAuth 1.0a server that checks signatures."""

    url: str
    parts: Platform
    settings: Settings
    api: EvergrantApi
    key: str
    idp: OAuth1Server
    tls: LoopbackTls

    async def integration(self, name: str, how: str = "HMAC-SHA1", **more: Any) -> None:
        document = {
            "name": name,
            "display_name": "Of old",
            "auth_modes": ["oauth1"],
            "authorization_endpoint": self.idp.url("page"),
            "token_endpoint": self.idp.url("token"),
            "request_token_endpoint": self.idp.url("temporary"),
            "oauth1": {"signature_method": how, "realm": "Photos"},
            "response": {"metadata_paths": ["user_id", "screen_name"]},
        }
        definition = a_definition(TENANT, document, self.parts.clock.now())
        async with self.parts.store.write() as tx:
            await tx.definitions.add(definition)
        body = {"provider": name, "client_id": self.idp.client_id, "client_secret": self.idp.client_secret}
        await self.api.put(f"/v1/integrations/{name}", body | more)

    async def connect(self, integration: str, subject: str = "sam") -> dict[str, Any]:
        return await self.api.post("/v1/connections", {"integration": integration, "subject": subject})

    async def active(self, integration: str) -> dict[str, Any]:
        begun = await self.connect(integration)
        async with self.browser() as browser:
            there = await leave(browser, begun["connect_url"])
            answer = await browser.get(self.idp.consent(there), follow_redirects=True)
        assert "is connected" in answer.text, answer.text
        return await self.api.state(begun["id"], "active", PATIENCE_S)

    def browser(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S)

    def signing(self) -> AsyncEvergrant:
        return AsyncEvergrant(self.url, self.key, deadline=timedelta(seconds=30))

    async def called(self, signed: Any, url: str, method: str = "GET", **more: Any) -> httpx2.Response:
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S, verify=self.tls.trust) as app:
            return await app.request(method, url, headers=dict(signed.headers), **more)

    async def records(self, connection: dict[str, Any], action: AuditAction) -> list[dict[str, Any]]:
        async with self.parts.store.read() as tx:
            found = await audit.page(tx, TENANT, object=connection["id"], limit=100)
        return [it.detail for it in found if it.action is action]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    patched = pytest.MonkeyPatch()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergrant-")))
        stack.callback(patched.undo)
        tls = loopback_tls(folder)
        patched.setenv("SSL_CERT_FILE", str(tls.authorities))
        idp = await stack.enter_async_context(OAuth1Server(tls=tls))
        temporal = await stack.enter_async_context(running_temporal(folder))
        await prepare_namespace(await temporal.client(), timedelta(days=365))
        await migrated_sqlite(folder)
        port = free_port()
        settings = await prepared(temporal.address, sqlite_url(folder), folder, (idp.allowance,), port=port)
        parts = await stack.enter_async_context(open_platform(settings, Role.OPERATOR))
        await stack.enter_async_context(running_worker(settings))
        url = await stack.enter_async_context(serving(settings, port))
        key = await bootstrap_admin(parts.store, parts.clock, TENANT)
        api = await stack.enter_async_context(EvergrantApi(url, key))
        everything = {"integration": "*", "actions": ["token", "connect", "admin"]}
        await api.put("/v1/apps/admin/permits/admin", everything)
        yield World(url, parts, settings, api, key, idp, tls)


@pytest.mark.parametrize("how", ["HMAC-SHA1", "HMAC-SHA256"])
async def test_rfc5849_from_consent_to_signed_requests(world: World, how: str):
    """The library of another implementation checks every signature; the app never sees a secret."""
    name = f"old-{how.lower()}"
    await world.integration(name, how)
    connection = await world.active(name)
    assert (connection["flow"], connection["expires_at"]) == ("oauth1", None)
    async with world.signing() as client:
        url = f"{world.idp.url('api')}?{urlencode({'q': 'a b&c=d', 'é': '+'})}"
        signed = await client.sign(connection["id"], "GET", url)
        answer = await world.called(signed, url)
        assert answer.status_code == 200
        assert (await world.called(signed, url)).status_code == 401, "a nonce works once"
        form = [("status", "Hello, wörld & all"), ("status", "twice")]
        signed = await client.sign(connection["id"], "POST", world.idp.url("api"), form)
        posted = await world.called(signed, world.idp.url("api"), "POST", content="status=altered")
        assert posted.status_code == 401
        signed = await client.sign(connection["id"], "POST", world.idp.url("api"), form)
        headers = {"Content-Type": "application/x-www-form-urlencoded", **signed.headers}
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S, verify=world.tls.trust) as app:
            posted = await app.post(world.idp.url("api"), content=urlencode(form), headers=headers)
        assert posted.status_code == 200
        assert signed.generation == 1
        assert "oauth" not in repr(signed).lower()
    said = [it.get("signed") for it in await world.records(connection, AuditAction.LEASE_ISSUED)]
    assert f"GET {world.idp.url('api')}" in said
    assert not any("?" in str(it) for it in said), "no query in the log"


async def test_there_is_no_token_to_lease(world: World):
    await world.integration("nothing-to-lease")
    connection = await world.active("nothing-to-lease")
    for ask in (
        world.api.lease("nothing-to-lease", "sam"),
        world.api.post(f"/v1/connections/{connection['id']}/token"),
    ):
        with refused("signature_needed", 409):
            await ask
    assert await world.records(connection, AuditAction.LEASE_ISSUED) == []
    body = {"integration": "x", "subject": "x", "flow": "token_exchange", "source": connection["id"]}
    with refused("invalid_request"):
        await world.api.post("/v1/connections", body)
    await world.api.post(f"/v1/connections/{connection['id']}/revoke", {"reason": "left"})
    ended = await world.api.state(connection["id"], "revoked", PATIENCE_S)
    assert ended["revocation"] == "not_supported"
    body = {"method": "GET", "url": world.idp.url("api")}
    with refused("connection_revoked"):
        await world.api.post(f"/v1/connections/{connection['id']}/signatures", body)


async def test_rfc5849_3_4_4_plaintext_discloses_no_secret_to_an_app(world: World):
    await world.integration("plain", "PLAINTEXT")
    connection = await world.active("plain")
    async with world.signing() as client:
        with pytest.raises(BadRequest, match="would reveal the secrets"):
            await client.sign(connection["id"], "GET", world.idp.url("api"))


async def test_rfc5849_2_2_a_declined_consent_is_denied(world: World):
    await world.integration("declined")
    begun = await world.connect("declined")
    async with world.browser() as browser:
        there = await leave(browser, begun["connect_url"])
        token = dict(parse_qsl(urlsplit(there).query))["oauth_token"]
        back = denied(world.idp.known.temporary[token]["callback"], token)
        await browser.get(back, follow_redirects=True)
    await world.api.state(begun["id"], "denied", PATIENCE_S)


async def test_rfc5849_4_the_callback_belongs_to_the_browser_that_began(world: World):
    """Session fixation, for which 1.0a was made: another browser brings the token and its verifier."""
    await world.integration("fixed")
    begun = await world.connect("fixed")
    async with world.browser() as browser, world.browser() as thief:
        back = world.idp.consent(await leave(browser, begun["connect_url"]))
        stolen = await thief.get(back)
        assert (stolen.status_code, "callback_invalid" in stolen.text) == (400, True)
        forged = await browser.get(back.replace("oauth_verifier=", "oauth_verifier=x"), follow_redirects=True)
        assert "is connected" not in forged.text
        again = await browser.get(back)
        assert again.status_code == 400
    assert (await world.api.connection(begun["id"]))["state"] == "pending_consent"


async def test_an_unreachable_server_is_reported_and_the_link_still_works(world: World):
    await world.integration("away")
    begun = await world.connect("away")
    world.idp.script(status(503), at="temporary")
    async with world.browser() as browser:
        (form,) = read_forms((await browser.get(begun["connect_url"])).text)
        answer = await browser.post(begun["connect_url"], data=form.fields)
        assert (answer.status_code, "provider_error" in answer.text) == (503, True)
        there = await leave(browser, begun["connect_url"])
        done = await browser.get(world.idp.consent(there), follow_redirects=True)
    assert "is connected" in done.text
