"""A provider with TLS, end to end: what comes beside the code, which account, and mutual TLS.

The provider is a tenant's own definition: its callback is signed, names the account, and says at
which host the tokens are.
"""

import asyncio
import hashlib
import hmac
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
import pytest_asyncio

from examples.demo.forms import read_forms
from examples.demo.waiting import wait_until
from tests.e2e.world import COMMAND, World, define, leave, refused, running
from tests.fakes.certificates import LoopbackTls, loopback_tls, own_certificate
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.scripted_provider import ScriptedProvider, delay, drop, raw, status

TOKEN_S = 60
OURS = own_certificate()

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


class Callbacks(World):
    """With a provider, and the shortest way to an integration of a definition of our own."""

    idp: ScriptedProvider
    mutual: ScriptedProvider
    tls: LoopbackTls

    async def defined(
        self, name: str, client: dict[str, Any] | None = None, /, **fields: Any
    ) -> dict[str, Any]:
        document = {
            "name": f"acme-{name}",
            "display_name": "Acme",
            "auth_modes": ["authorization_code"],
            "authorization_endpoint": self.idp.url("authorize"),
            "token_endpoint": self.idp.url("token"),
            "revocation_endpoint": self.idp.url("revoke"),
            "client_auth": "client_secret_post",
            "refresh_rotates": True,
            **fields,
        }
        await define(self.admin, document)
        body = {
            "provider": document["name"],
            "client_id": self.idp.client_id,
            "client_secret": self.idp.client_secret,
            "binding": "none",
            **(client or {}),
        }
        given = {field: value for field, value in body.items() if value is not None}
        return await self.admin.put(f"/v1/integrations/{name}", given)


class Browser:
    """Opens a link, goes to the provider, and comes back with what a test puts beside the code."""

    def __init__(self, world: Callbacks) -> None:
        self._world = world
        self._http = httpx2.AsyncClient(
            trust_env=False, verify=world.tls.trust, follow_redirects=False, timeout=PATIENCE_S
        )
        self.back = ""

    async def __aenter__(self) -> "Browser":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def leave(self, link: str) -> None:
        """Press the button of the page; the provider consents by itself and says where to go back."""
        consented = await self._http.get(await leave(self._http, link))
        self.back = consented.headers["location"]

    async def choose(self, page: httpx2.Response, choice: str) -> httpx2.Response:
        (form,) = read_forms(page.text)
        where = self._world.platform.api + form.action
        return await self._http.post(where, data={**form.fields, "choice": choice})

    async def come_back(self, **facts: str) -> httpx2.Response:
        where, _, query = self.back.partition("?")
        answer = await self._http.get(f"{where}?{urlencode([*parse_qsl(query), *facts.items()])}")
        while answer.status_code == 303:
            answer = await self._http.get(self._world.platform.api + answer.headers["location"])
        return answer

    def signed(self, **facts: str) -> dict[str, str]:
        query = dict(parse_qsl(urlsplit(self.back).query)) | facts
        message = "&".join(f"{name}={query[name]}" for name in sorted(query))
        secret = self._world.idp.client_secret.encode()
        return {**facts, "hmac": hmac.new(secret, message.encode(), hashlib.sha256).hexdigest()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callbacks]:
    folder = tmp_path_factory.mktemp("callbacks")
    tls = loopback_tls(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(tls.authorities))  # the platform's processes trust it
        async with (
            ScriptedProvider(tls=tls, expires_in=TOKEN_S) as idp,
            ScriptedProvider(tls=tls.demanding(OURS)) as mutual,
            running(Callbacks, folder / "data", idp.allowance, mutual.allowance) as world,
        ):
            world.idp, world.mutual, world.tls = idp, mutual, tls
            yield world


async def test_a_signed_callback_names_the_host_and_the_account(world: Callbacks):
    """Code and refresh token go to the host that came, and the account is the connection's metadata."""
    await world.defined(
        "shop",
        token_endpoint="https://{host}/token",
        refresh_endpoint="https://{host}/token",
        template_params={
            "host": {
                "pattern": r"^127\.0\.0\.1:[0-9]{1,5}$",
                "source": "callback",
                "callback_param": "server",
                "normalise": ["host_of_origin"],
            }
        },
        callback_metadata_params=["realmId"],
        callback_patterns={"realmId": "^[0-9]{1,20}$"},
        callback_verify={"kind": "hmac_sha256_query", "param": "hmac", "secret": "client_secret"},
    )
    begun = await world.begin("shop")
    facts = {"server": world.idp.origin, "realmId": "4711"}
    async with Browser(world) as browser:
        await browser.leave(begun["connect_url"])
        forged = await browser.come_back(**facts, hmac="0" * 64)
        assert (forged.status_code, "callback_invalid" in forged.text) == (400, True)
        assert world.idp.count("token") == 0
        shown = await browser.come_back(**browser.signed(**facts))
    assert shown.status_code == 200, shown.text
    found = await world.active(begun)
    assert found["metadata"] == {"realmId": "4711", "host": world.idp.allowance}
    await world.api.post(f"/v1/connections/{begun['id']}/refresh")
    refreshed = await world.api.generation(begun["id"], 2, PATIENCE_S)
    assert refreshed["metadata"] == found["metadata"]
    assert world.idp.count("token", grant_type="refresh_token") == 1


# --- which account ----------------------------------------------------------------------------

SITES = [{"id": "site-1", "name": "First <b>site</b>"}, {"id": "site-2", "name": "Second"}]


async def looks_up(world: Callbacks, name: str) -> None:
    lookup = {"url": world.idp.url("sites"), "choose": "[]", "metadata": {"cloud_id": "id"}, "label": "name"}
    await world.defined(name, post_auth=[lookup])


async def test_several_accounts_wait_for_a_choice_on_the_page(world: Callbacks):
    await looks_up(world, "sites")
    world.idp.script(raw(json.dumps(SITES).encode()), at="sites")
    begun = await world.begin("sites")
    async with Browser(world) as browser:
        await browser.leave(begun["connect_url"])
        page = await browser.come_back()
        assert "First &lt;b&gt;site&lt;/b&gt;" in page.text
        found = await world.api.connection(begun["id"])
        assert (found["state"], found["reason"], found["repairer"]) == (
            "active",
            "choice_required",
            "subject",
        )
        assert [it["id"] for it in found["choices"]] == ["site-1", "site-2"]
        assert found["next_action"] == "choose"
        with refused("choice_required", 409):
            await world.api.lease("sites", "sam")
        for _ in range(2):  # a button may be pressed twice
            chosen = await browser.choose(page, "site-2")
            assert "is connected" in chosen.text
        # the page is no standing right to move the connection: who has its link and cookie later is refused
        late = await browser.choose(page, "site-1")
        assert (late.status_code, "callback_invalid" in late.text) == (400, True)
    found = await world.api.connection(begun["id"])
    assert (found["reason"], found["choice"], found["metadata"]) == (None, "site-2", {"cloud_id": "site-2"})
    assert (await world.api.lease("sites", "sam"))["connection_id"] == begun["id"]
    told = world.idp.calls[-1]
    assert (told.endpoint, told.headers["authorization"][:10]) == ("sites", "Bearer at-")


async def test_a_lookup_is_asked_again_and_outlives_its_worker(world: Callbacks):
    """One account needs no choice. Leases leave meanwhile: the token is good."""
    await looks_up(world, "one")
    held = asyncio.Event()
    world.idp.script(status(503), delay(held, drop()), raw(json.dumps(SITES[:1]).encode()), at="sites")
    begun = await world.begin("one")
    asked = world.idp.count("sites")
    async with Browser(world) as browser:
        await browser.leave(begun["connect_url"])
        coming = asyncio.create_task(browser.come_back())
        await world.idp.until("sites", asked + 2, PATIENCE_S)
        assert (await world.api.lease("one", "sam"))["connection_id"] == begun["id"]
        killed = world.platform.worker_pid()
        os.kill(killed, signal.SIGKILL)
        await world.platform.new_worker(killed)
        held.set()
        await coming

    async def known() -> dict[str, Any] | None:
        found = await world.api.connection(begun["id"])
        return found if found["metadata"] else None

    found = await wait_until(known, "its account", PATIENCE_S)
    assert (found["choice"], found["metadata"], found["reason"]) == ("site-1", {"cloud_id": "site-1"}, None)


async def test_a_requested_account_is_selected_and_changed_later(world: Callbacks):
    await looks_up(world, "asked")
    world.idp.script(raw(json.dumps(SITES).encode()), at="sites")
    begun = await world.begin("asked", choice="site-2")
    async with Browser(world) as browser:
        await browser.leave(begun["connect_url"])
        assert "is connected" in (await browser.come_back()).text
    found = await world.api.connection(begun["id"])
    assert (found["choice"], found["metadata"]) == ("site-2", {"cloud_id": "site-2"})
    with refused("invalid_request", 400):
        await world.api.post(f"/v1/connections/{begun['id']}/choose", {"choice": "site-3"})
    choose = (COMMAND, "connections", "choose", begun["id"], "site-1", "-o", "json")
    exit_status, out, err = await world.run(*choose)
    assert (exit_status, json.loads(out)["reason"]) == (0, None), err
    assert (await world.api.connection(begun["id"]))["metadata"] == {"cloud_id": "site-1"}


# --- mutual TLS -------------------------------------------------------------------------------


async def test_rfc8705_a_certificate_authenticates_at_the_mtls_alias(world: Callbacks):
    world.idp.metadata["mtls_endpoint_aliases"] = {"token_endpoint": world.mutual.url("token")}
    body = {
        "provider": "generic",
        "issuer": world.idp.issuer,
        "client_id": world.idp.client_id,
        "client_auth": "self_signed_tls_client_auth",
    }
    with refused("invalid_request"):
        await world.admin.put("/v1/integrations/bank", body)
    certificate = {"certificate": OURS.certificate, "private": OURS.private}
    made = await world.admin.put("/v1/integrations/bank", {**body, "client_certificate": certificate})
    assert made["client_certificate_expires_at"] is not None
    assert "PRIVATE" not in json.dumps(made)
    world.mutual.script(raw(b'{"access_token": "at-1", "token_type": "bearer", "expires_in": 600}'))
    begun = await world.begin("bank", flow="client_credentials")
    await world.active(begun)
    assert (await world.api.lease("bank", "sam"))["access_token"] == "at-1"
    assert (world.mutual.count("token"), world.idp.count("token", grant_type="client_credentials")) == (1, 0)


async def test_a_client_is_registered_at_a_host(world: Callbacks):
    """As Mastodon's servers do: the base URL is enough, without a client id."""
    name = "toots"
    app = {"id": "1", "client_id": world.idp.client_id, "client_secret": world.idp.client_secret}
    world.idp.script(raw(json.dumps({**app, "client_secret_expires_at": 0}).encode()), at="api/v1/apps")
    fields = {
        "client_registration": "per_host",
        "registration_endpoint": "https://{host}/api/v1/apps",
        "token_endpoint": "https://{host}/token",
        "template_params": {"host": {"pattern": r"^127\.0\.0\.1:[0-9]{1,5}$"}},
        "quirks": ["mastodon_apps"],
    }
    registering = {
        "client_id": None,
        "client_secret": None,
        "registration": "dynamic",
        "params": {"host": world.idp.allowance},
        "default_scopes": ["read", "write"],
    }
    made = await world.defined(name, registering, **fields)
    assert (made["state"], made["client_id"]) == ("ready", world.idp.client_id)
    (asked,) = [call for call in world.idp.calls if call.endpoint == "api/v1/apps"]
    assert json.loads(asked.body) == {
        "client_name": "Evergrant",
        "redirect_uris": made["redirect_uri"],
        "scopes": "read write",
    }
    begun = await world.begin(name)
    async with Browser(world) as browser:
        await browser.leave(begun["connect_url"])
        assert "is connected" in (await browser.come_back()).text
