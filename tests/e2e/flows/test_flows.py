"""Every flow, end to end through the whole platform: API, workflow, worker, lease, revocation.

`docs/flows.md` says which server each is tested against, and names these tests.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from joserfc.jwk import ECKey

from examples.demo.authorization_server import AuthorizationServer
from examples.demo.evergrant_api import ApiProblem
from examples.demo.waiting import wait_until
from tests.e2e.world import World, at, define, refused, running
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.providers.client_grants import DEVICE_CODE, JWT_BEARER, TOKEN_EXCHANGE, OtherGrants
from tests.fakes.providers.scripted_provider import drop, error, status

KEY = ECKey.generate_key("P-256", {"kid": "ours-1"})
PRIVATE = {"private": KEY.as_pem(private=True).decode(), "id": "ours-1"}
TOKEN_S = 6

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


class Flows(World):
    """With a real authorization server, and a scripted one."""

    real: AuthorizationServer
    idp: OtherGrants

    async def connect(self, integration: str, flow: str, subject: str = "nightly", **more: Any) -> dict:
        return await self.begin(integration, subject, flow=flow, **more)

    async def at_once(self, integration: str, flow: str, subject: str = "nightly", **more: Any) -> dict:
        """A connection of a flow without a subject."""
        begun = await self.connect(integration, flow, subject, **more)
        assert begun["connect_url"] is None
        return await self.active(begun)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Flows]:
    folder = tmp_path_factory.mktemp("flows")
    (folder / "as").mkdir()
    seconds = ("--access-token-seconds", str(TOKEN_S), "--device-interval", "1")
    async with (
        OtherGrants(keys={"ours-1": KEY.as_dict(private=False)}, expires_in=TOKEN_S) as idp,
        running_authorization_server(folder / "as", *seconds) as real,
        running(Flows, folder / "data", real.issuer, idp.allowance) as world,
    ):
        await real.register("http://127.0.0.1:1/callback")  # it may introspect
        world.real, world.idp = real, idp
        yield world


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_left(world: Flows) -> None:
    """What an earlier test left would be refreshed, and take the answers that are for this one."""
    for left in (await world.api.get("/v1/connections?state=active"))["items"]:
        await world.api.post(f"/v1/connections/{left['id']}/revoke", {"reason": "a test is over"})
    world.idp.calls.clear()
    world.idp.assertions.clear()


async def test_rfc6749_4_4_client_credentials_at_a_real_server(world: Flows):
    """Active without a browser, requested again when it is due, revoked at the server."""
    await world.real.register("", client_id="machine", grant_type="client-credentials")
    await world.integration("machine", at(world.real, client_id="machine"))
    connection = await world.at_once("machine", "client_credentials")
    assert (connection["flow"], connection["scopes"]) == ("client_credentials", ["read"])
    first = await world.api.lease("machine", "nightly")
    assert await introspected(world, first)

    async def newer() -> dict | None:
        lease = await world.api.lease("machine", "nightly")
        return lease if lease["generation"] > first["generation"] else None

    second = await wait_until(newer, "another token", PATIENCE_S)
    assert second["access_token"] != first["access_token"]
    assert await world.real.calls("client_credentials") >= 2
    assert await world.real.calls("refresh_token") == 0
    assert (await world.revoked(connection))["revocation"] == "confirmed"
    assert not await introspected(world, second)


async def introspected(world: Flows, lease: dict) -> bool:
    return (await world.real.introspect(lease["access_token"]))["active"]


async def test_rfc7523_2_1_jwt_bearer(world: Flows):
    """A service account: the signed assertion is the grant, signed again for each token."""
    await world.integration(
        "service", at(world.idp, client_auth="none", client_secret=None, client_key=PRIVATE)
    )
    connection = await world.at_once("service", "jwt_bearer")
    await world.refreshed(connection)
    assert world.idp.count("token", grant_type=JWT_BEARER) == 2
    assert {claims["aud"] for claims in world.idp.assertions} == {world.idp.url("token")}


async def test_rfc8628_device_authorization_at_a_real_server(world: Flows):
    """The code is shown by API and page; a person types it in elsewhere; the tokens come by themselves."""
    await world.real.register("", client_id="television", grant_type=DEVICE_CODE)
    await world.integration("television", at(world.real, client_id="television"))
    begun = await world.connect("television", "device_code", "sam")
    device = begun["device"]
    assert (begun["state"], device["verification_uri"]) == ("pending_consent", f"{world.real.issuer}/device/")
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as browser:
        page = await browser.get(begun["connect_url"])
        assert device["user_code"] in page.text
        await world.real.scripted_consent(f"{device['verification_uri']}?user_code={device['user_code']}")
        connection = await world.active(begun)
        assert "is connected" in (await browser.get(begun["connect_url"])).text
    lease = await world.api.lease("television", "sam")
    assert (await world.real.whoami(lease["access_token"])).json()["user"] == world.real.user
    assert connection["device"] is None  # shown while it is waited for
    refreshed = await world.refreshed(begun)
    assert refreshed["generation"] == 2
    assert (await world.revoked(connection))["revocation"] == "confirmed"


@pytest.mark.parametrize(("reach", "live_after"), [("token", 1), ("grant", 2), (None, 2)])
async def test_attack_7_a_reconnect_ends_no_grant_in_use_and_leaves_none_behind(
    world: Flows, reach: str | None, live_after: int
):
    """Consent, reauthorize, revoke: the first grant ends at once where that ends no other, or at last."""
    name, how = f"reach-{reach}".lower(), {} if reach is None else {"revocation": {"reach": reach}}
    document = {"name": name, "display_name": name, "auth_modes": ["authorization_code"], **how}
    await define(world.admin, {**document, "discovery": True, "client_auth": "client_secret_basic"})
    made = await world.integration(name, at(world.real, provider=name, client_id=name))
    await world.real.register(made["redirect_uri"], client_id=name)
    others, told = (await world.real.refresh_tokens())[0], await world.real.calls("revocation")
    begun = await world.begin(name)
    await world.real.scripted_consent(begun["connect_url"])
    await world.active(begun)
    first = await world.api.lease(name, "sam")
    again = await world.api.post(f"/v1/connections/{begun['id']}/reauthorize")
    await world.real.scripted_consent(again["connect_url"])

    async def live() -> int:
        return (await world.real.refresh_tokens())[0] - others

    async def newer() -> int:
        return (await world.api.lease(name, "sam"))["generation"]

    await eventually(newer, lambda it: it > first["generation"])
    await eventually(live, lambda it: it == live_after)
    sent = await world.real.calls("revocation") - told
    assert (sent > 0) == (reach == "token"), "no call where it may end the new grant"
    assert (await world.revoked(begun))["revocation"] == "confirmed"
    assert await live() == 0
    assert not await introspected(world, first)


async def test_rfc8628_3_5_slow_down_and_silence_are_heeded(world: Flows):
    await world.integration("slowly", at(world.idp))
    world.idp.script(error("authorization_pending"), drop(), error("slow_down"))
    begun = await world.connect("slowly", "device_code", "sam")
    await world.idp.until("token", 3, timeout=PATIENCE_S)
    world.idp.approve(begun["device"]["user_code"])
    await world.active(begun)
    assert world.idp.count("device") == 1
    asked = [call.at for call in world.idp.calls if call.endpoint == "token"]
    waits = [later - earlier for earlier, later in pairwise(asked)]
    least = zip(waits, (1, 2, 7), strict=False)  # a busy machine makes them longer; +5 s for good
    assert all(wait > seconds - 0.5 for wait, seconds in least), waits


@pytest.mark.parametrize(
    ("answer", "state"), [("access_denied", "denied"), ("expired_token", "consent_expired")]
)
async def test_rfc8628_an_ended_code_ends_the_connection(world: Flows, answer: str, state: str):
    await world.integration(f"over-{state.replace('_', '-')}", at(world.idp))
    world.idp.script(error(answer))
    begun = await world.connect(f"over-{state.replace('_', '-')}", "device_code", "sam")
    ended = await world.api.state(begun["id"], state, PATIENCE_S)
    assert ended["device"] is None
    asked = world.idp.count("token")
    await asyncio.sleep(2)  # twice the interval: no further poll
    assert world.idp.count("token") == asked == 1


async def test_rfc8693_token_exchange_from_another_connection(world: Flows):
    """The source's token is exchanged; one that is over is made new by the source's own workflow first."""
    await world.integration("front", at(world.idp))
    await world.integration("back", at(world.idp))
    source = await world.at_once("front", "client_credentials")
    connection = await world.at_once("back", "token_exchange", source=source["id"], audience="backend")
    lease = await world.api.lease("front", "nightly")
    assert world.idp.count("token", grant_type=TOKEN_EXCHANGE, subject_token=lease["access_token"]) == 1
    other = await world.at_once("front", "client_credentials", subject="another")
    with pytest.raises(ApiProblem, match="already_exists"):
        await world.connect("back", "token_exchange", source=other["id"])
    await asyncio.sleep(TOKEN_S + 1)  # until the source's token has expired without a lease
    assert world.idp.active(lease["access_token"]) is False

    async def exchanged() -> dict | None:
        with contextlib.suppress(ApiProblem):
            return await world.api.lease("back", "nightly")
        return None

    second = await wait_until(exchanged, "an exchange of the newer token", PATIENCE_S)
    assert world.idp.active(second["access_token"])
    assert world.idp.count("token", audience="backend") >= 2
    assert (await world.revoked(connection))["revocation"] == "confirmed"
    assert (await world.api.connection(source["id"]))["state"] == "active"


async def test_rfc8693_token_exchange_of_a_given_token(world: Flows):
    await world.integration("bridge", at(world.idp))
    theirs, family = world.idp.grant()["access_token"], world.idp.families[-1]
    connection = await world.at_once("bridge", "token_exchange", subject_token=theirs)
    family.alive = False  # it has ended over there

    async def refused() -> ApiProblem | None:
        """A refresh ahead may be under way, which brings a token or is refused itself."""
        try:
            await world.refreshed(connection)
        except ApiProblem as no:
            return no
        return None

    assert (await wait_until(refused, "a refresh that is refused", PATIENCE_S)).code == "grant_rejected"
    assert (await world.api.connection(connection["id"]))["state"] == "needs_reauth"
    assert (await world.revoked(connection))["revocation"] == "confirmed"
    assert world.idp.count("revoke", token=theirs) == 0  # what was brought is not ours to end


@pytest.mark.parametrize(
    ("flow", "credential", "token", "kind"),
    [
        ("api_key", {"api_key": "sk-live-1"}, "sk-live-1", "ApiKey"),
        ("basic", {"username": "sam", "password": "pass:word"}, "c2FtOnBhc3M6d29yZA==", "Basic"),
    ],
)
async def test_static_credentials_are_leased_like_any_other(
    world: Flows, flow: str, credential: dict, token: str, kind: str
):
    name = flow.replace("_", "-")
    await world.integration(name, at(world.idp))
    connection = await world.at_once(name, flow, credential=credential)
    lease = await world.api.lease(name, "nightly")
    assert (lease["access_token"], lease["token_type"], lease["expires_at"]) == (token, kind, None)
    assert (await world.revoked(connection))["revocation"] == "not_supported"
    with pytest.raises(ApiProblem):
        await world.api.lease(name, "nightly")
    assert world.idp.count("token") == 0


@pytest.mark.parametrize(
    "body",
    [
        {"flow": "api_key"},
        {"flow": "api_key", "credential": {"api_key": "a b"}},
        {"flow": "token_exchange"},
        {"flow": "client_credentials", "subject_token": "t"},
    ],
)
async def test_input_of_another_flow_is_refused(world: Flows, body: dict):
    await world.integration("strictly", at(world.idp))
    with refused("invalid_request", 400):
        await world.api.post("/v1/connections", {"integration": "strictly", "subject": "x", **body})


async def test_a_first_token_is_requested_until_it_is_granted(world: Flows):
    """What time or an admin repairs is tried again by the workflow; the row says why it waits."""
    await world.integration("slow", at(world.idp))
    world.idp.script(status(503, {"Retry-After": "2"}), error("invalid_client", 401))
    begun = await world.connect("slow", "client_credentials")

    async def why() -> str | None:
        return (await world.api.connection(begun["id"]))["reason"]

    assert await wait_until(why, "a reason", PATIENCE_S) == "provider_error"
    with refused("provider_error"):  # no link: no subject consents in this flow
        await world.api.lease("slow", "nightly")
    await eventually(why, lambda it: it == "client_rejected")
    assert (await world.connect("slow", "client_credentials"))["id"] == begun["id"]
    assert world.idp.count("token") == 2  # an admin's to repair: looked at again slowly


async def test_a_live_connection_keeps_its_flow_and_resources(world: Flows):
    """A request for other resources or another flow gets no token of the existing grant."""
    await world.integration("one", at(world.idp))
    await world.at_once("one", "client_credentials", resources=["https://api.example/v1"])
    for flow, more in (
        ("authorization_code", {}),
        ("client_credentials", {"resources": ["https://api.example/v2"]}),
        ("client_credentials", {"audience": "backend"}),
    ):
        with refused("already_exists", 409):
            await world.connect("one", flow, **more)
    again = await world.api.post("/v1/connections", {"integration": "one", "subject": "nightly"})
    assert (again["flow"], again["state"]) == ("client_credentials", "active")
