"""Flows of the old world, through the whole platform: a browser, the API, a worker, Temporal, a lease.

`docs/flows.md` says which server each is tested against, and names these tests.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
import pytest_asyncio
from evergrant import AsyncEvergrant, BadRequest

from evergrant_server.core.audit import AuditAction
from examples.demo.forms import read_forms
from tests.e2e.world import World, define, leave, refused, running
from tests.fakes.certificates import LoopbackTls, loopback_tls
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.oauth1_server import OAuth1Server, denied
from tests.fakes.providers.scripted_provider import html, status

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


class Old(World):
    """With an OAuth 1.0a server that checks signatures."""

    idp: OAuth1Server
    tls: LoopbackTls

    async def defined(self, name: str, how: str = "HMAC-SHA1") -> None:
        """An integration of a definition of our own."""
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
        self.idp.script(html(), at="page")  # there is a page, as the definition says
        await define(self.admin, document)
        body = {"provider": name, "client_id": self.idp.client_id, "client_secret": self.idp.client_secret}
        await self.integration(name, body)

    async def consented(self, integration: str) -> dict[str, Any]:
        begun = await self.begin(integration)
        async with self.browser() as browser:
            there = await leave(browser, begun["connect_url"])
            answer = await browser.get(self.idp.consent(there), follow_redirects=True)
        assert "is connected" in answer.text, answer.text
        return await self.active(begun)

    def browser(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S)

    def signing(self) -> AsyncEvergrant:
        return AsyncEvergrant(self.platform.api, self.key, deadline=timedelta(seconds=PATIENCE_S))

    async def called(self, headers: Any, url: str, method: str = "GET", **more: Any) -> httpx2.Response:
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S, verify=self.tls.trust) as app:
            return await app.request(method, url, headers=dict(headers), **more)

    async def leased(self, connection: dict[str, Any]) -> list[dict[str, Any]]:
        """The details of the leases on record."""
        found = await self.admin.get(f"/v1/connections/{connection['id']}/audit?limit=100")
        return [it["detail"] for it in found["items"] if it["action"] == AuditAction.LEASE_ISSUED]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Old]:
    folder = tmp_path_factory.mktemp("oauth1")
    tls = loopback_tls(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(tls.authorities))  # the platform's processes trust it
        async with (
            OAuth1Server(tls=tls) as idp,
            running(Old, folder / "data", idp.allowance) as world,
        ):
            world.idp, world.tls = idp, tls
            yield world


@pytest.mark.parametrize("how", ["HMAC-SHA1", "HMAC-SHA256"])
async def test_rfc5849_from_consent_to_signed_requests(world: Old, how: str):
    """The library of another implementation checks every signature; the app never sees a secret."""
    name = f"old-{how.lower()}"
    await world.defined(name, how)
    connection = await world.consented(name)
    assert (connection["flow"], connection["expires_at"]) == ("oauth1", None)
    async with world.signing() as client:
        url = f"{world.idp.url('api')}?{urlencode({'q': 'a b&c=d', 'é': '+'})}"
        signed = await client.sign(connection["id"], "GET", url)
        answer = await world.called(signed.headers, url)
        assert answer.status_code == 200
        assert (await world.called(signed.headers, url)).status_code == 401, "a nonce works once"
        form = [("status", "Hello, wörld & all"), ("status", "twice")]
        signed = await client.sign(connection["id"], "POST", world.idp.url("api"), form)
        posted = await world.called(signed.headers, world.idp.url("api"), "POST", content="status=altered")
        assert posted.status_code == 401
        signed = await client.sign(connection["id"], "POST", world.idp.url("api"), form)
        headers = {"Content-Type": "application/x-www-form-urlencoded", **signed.headers}
        posted = await world.called(headers, world.idp.url("api"), "POST", content=urlencode(form))
        assert posted.status_code == 200
        assert signed.generation == 1
        assert "oauth" not in repr(signed).lower()
    said = [it.get("signed") for it in await world.leased(connection)]
    assert f"GET {world.idp.url('api')}" in said
    assert not any("?" in str(it) for it in said), "no query in the log"


async def test_there_is_no_token_to_lease(world: Old):
    await world.defined("nothing-to-lease")
    connection = await world.consented("nothing-to-lease")
    for ask in (
        world.api.lease("nothing-to-lease", "sam"),
        world.api.post(f"/v1/connections/{connection['id']}/token"),
    ):
        with refused("signature_needed", 409):
            await ask
    assert await world.leased(connection) == []
    body = {"integration": "x", "subject": "x", "flow": "token_exchange", "source": connection["id"]}
    with refused("invalid_request"):
        await world.api.post("/v1/connections", body)
    assert (await world.revoked(connection))["revocation"] == "not_supported"
    body = {"method": "GET", "url": world.idp.url("api")}
    with refused("connection_revoked"):
        await world.api.post(f"/v1/connections/{connection['id']}/signatures", body)


async def test_rfc5849_3_4_4_plaintext_discloses_no_secret_to_an_app(world: Old):
    await world.defined("plain", "PLAINTEXT")
    connection = await world.consented("plain")
    async with world.signing() as client:
        with pytest.raises(BadRequest, match="would reveal the secrets"):
            await client.sign(connection["id"], "GET", world.idp.url("api"))


async def test_rfc5849_2_2_a_declined_consent_is_denied(world: Old):
    await world.defined("declined")
    begun = await world.begin("declined")
    async with world.browser() as browser:
        there = await leave(browser, begun["connect_url"])
        token = dict(parse_qsl(urlsplit(there).query))["oauth_token"]
        back = denied(world.idp.known.temporary[token]["callback"], token)
        await browser.get(back, follow_redirects=True)
    await world.api.state(begun["id"], "denied", PATIENCE_S)


async def test_rfc5849_4_the_callback_belongs_to_the_browser_that_began(world: Old):
    """Session fixation, for which 1.0a was made: another browser brings the token and its verifier."""
    await world.defined("fixed")
    begun = await world.begin("fixed")
    async with world.browser() as browser, world.browser() as thief:
        back = world.idp.consent(await leave(browser, begun["connect_url"]))
        stolen = await thief.get(back)
        assert (stolen.status_code, "callback_invalid" in stolen.text) == (400, True)
        forged = await browser.get(back.replace("oauth_verifier=", "oauth_verifier=x"), follow_redirects=True)
        assert "is connected" not in forged.text
        again = await browser.get(back, follow_redirects=True)
        assert "is connected" not in again.text
    assert (await world.api.connection(begun["id"]))["state"] == "pending_consent"


async def test_an_unreachable_server_is_reported_and_the_link_still_works(world: Old):
    await world.defined("away")
    begun = await world.begin("away")
    world.idp.script(status(503), at="temporary")
    async with world.browser() as browser:
        (form,) = read_forms((await browser.get(begun["connect_url"])).text)
        answer = await browser.post(begun["connect_url"], data=form.fields)
        assert (answer.status_code, "provider_error" in answer.text) == (503, True)
        there = await leave(browser, begun["connect_url"])
        done = await browser.get(world.idp.consent(there), follow_redirects=True)
    assert "is connected" in done.text
