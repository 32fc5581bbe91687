"""Every flow, end to end through the whole platform: API, workflow, worker, lease, revocation.

`docs/flows.md` says which server each is tested against, and names these tests.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from joserfc.jwk import ECKey

from examples.demo.authorization_server import AuthorizationServer
from examples.demo.evergrant_api import ApiProblem, EvergrantApi
from examples.demo.platform import EvergrantProcess
from examples.demo.waiting import wait_until
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.client_grants import DEVICE_CODE, JWT_BEARER, TOKEN_EXCHANGE, OtherGrants
from tests.fakes.providers.scripted_provider import drop, error, status

COMMAND = str(Path(sys.executable).parent / "evergrant")
KEY = ECKey.generate_key("P-256", {"kid": "ours-1"})
PRIVATE = {"private": KEY.as_pem(private=True).decode(), "id": "ours-1"}
TOKEN_S = 6
SOON_S = PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


class World:
    """The platform, a real authorization server, a scripted one, and an app that may do everything."""

    def __init__(
        self, platform: EvergrantProcess, real: AuthorizationServer, idp: OtherGrants, key: str
    ) -> None:
        self.platform = platform
        self.real = real
        self.idp = idp
        self.key = key
        self.api = EvergrantApi(platform.api, key)
        self.admin = EvergrantApi(platform.api, platform.admin_key)

    async def integration(self, name: str, server: AuthorizationServer | OtherGrants, **more: Any) -> dict:
        body = {
            "provider": "generic",
            "issuer": server.issuer,
            "client_id": server.client_id,
            "client_secret": server.client_secret,
            "default_scopes": ["read"],
            **more,
        }
        return await self.admin.put(f"/v1/integrations/{name}", {k: v for k, v in body.items() if v})

    async def connect(self, integration: str, flow: str, subject: str = "nightly", **more: Any) -> dict:
        body = {"integration": integration, "subject": subject, "flow": flow, **more}
        return await self.api.post("/v1/connections", body)

    async def active(self, integration: str, flow: str, subject: str = "nightly", **more: Any) -> dict:
        begun = await self.connect(integration, flow, subject, **more)
        assert begun["connect_url"] is None
        return await self.api.state(begun["id"], "active", SOON_S)

    async def revoked(self, connection: dict) -> dict:
        await self.api.post(f"/v1/connections/{connection['id']}/revoke", {"reason": "the test is over"})
        return await self.api.state(connection["id"], "revoked", SOON_S)

    async def run(self, *command: str) -> tuple[int | None, str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
        env = {**kept, "EVERGRANT_URL": self.platform.api, "EVERGRANT_API_KEY": self.key}
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(COMMAND, *command, env=env, stdout=pipe, stderr=pipe)
        out, err = await asyncio.wait_for(child.communicate(), PATIENCE_S)
        return child.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("flows")
    (folder / "as").mkdir()
    async with AsyncExitStack() as stack:
        keys = {"ours-1": KEY.as_dict(private=False)}
        idp = await stack.enter_async_context(OtherGrants(keys=keys, expires_in=TOKEN_S))
        seconds = ("--access-token-seconds", str(TOKEN_S), "--device-interval", "1")
        real = await AuthorizationServer.start(folder / "as", *seconds)
        stack.push_async_callback(real.stop)
        await real.register("http://127.0.0.1:1/callback")  # it may introspect
        allow = f"{real.issuer.removeprefix('http://')},{idp.allowance}"
        platform = await EvergrantProcess.start(folder / "data", allow)
        stack.push_async_callback(platform.stop)
        admin = await stack.enter_async_context(EvergrantApi(platform.api, platform.admin_key))
        await admin.put("/v1/apps/jobs", {})
        permit = {"integration": "*", "actions": ["token", "connect"]}
        await admin.put("/v1/apps/jobs/permits/all", permit)
        made = World(platform, real, idp, (await admin.post("/v1/apps/jobs/keys"))["key"])
        await stack.enter_async_context(made.api)
        await stack.enter_async_context(made.admin)
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_left(world: World) -> None:
    """What an earlier test left would be refreshed, and take the answers that are for this one."""
    for left in (await world.api.get("/v1/connections?state=active"))["items"]:
        await world.api.post(f"/v1/connections/{left['id']}/revoke", {"reason": "a test is over"})
    world.idp.calls.clear()
    world.idp.assertions.clear()


async def test_rfc6749_4_4_client_credentials_at_a_real_server(world: World):
    """Active without a browser, requested again when it is due, revoked at the server."""
    await world.real.register("", client_id="machine", grant_type="client-credentials")
    await world.integration("machine", world.real, client_id="machine")
    connection = await world.active("machine", "client_credentials")
    assert (connection["flow"], connection["scopes"]) == ("client_credentials", ["read"])
    first = await world.api.lease("machine", "nightly")
    assert await introspected(world, first)

    async def newer() -> dict | None:
        lease = await world.api.lease("machine", "nightly")
        return lease if lease["generation"] > first["generation"] else None

    second = await wait_until(newer, "another token", SOON_S)
    assert second["access_token"] != first["access_token"]
    assert await world.real.calls("client_credentials") >= 2
    assert await world.real.calls("refresh_token") == 0
    assert (await world.revoked(connection))["revocation"] == "confirmed"
    assert not await introspected(world, second)


async def introspected(world: World, lease: dict) -> bool:
    return (await world.real.introspect(lease["access_token"]))["active"]


async def test_rfc7523_2_2_private_key_jwt_authenticates(world: World):
    await world.integration(
        "signing", world.idp, client_secret=None, client_auth="private_key_jwt", client_key=PRIVATE
    )
    connection = await world.active("signing", "client_credentials", resources=["https://api.example/v1"])
    assert connection["resources"] == ["https://api.example/v1"]
    assert world.idp.count("token", resource="https://api.example/v1") == 1
    shown = await world.admin.get("/v1/integrations/signing")
    assert (shown["has_client_key"], shown["has_client_secret"]) == (True, False)
    assert "PRIVATE" not in json.dumps(shown)
    (claims,) = world.idp.assertions
    assert (claims["iss"], claims["aud"]) == (world.idp.client_id, world.idp.issuer)
    assert (await world.revoked(connection))["revocation"] == "confirmed"
    assert len(world.idp.assertions) == 2  # the revocation was signed as well


async def test_rfc7523_2_1_jwt_bearer(world: World):
    """A service account: the signed assertion is the grant, signed again for each token."""
    await world.integration("service", world.idp, client_auth="none", client_secret=None, client_key=PRIVATE)
    connection = await world.active("service", "jwt_bearer")
    await world.api.post(f"/v1/connections/{connection['id']}/refresh")
    assert world.idp.count("token", grant_type=JWT_BEARER) == 2
    assert {claims["aud"] for claims in world.idp.assertions} == {world.idp.url("token")}


async def test_rfc8628_device_authorization_at_a_real_server(world: World):
    """The code is shown by API and page; a person types it in elsewhere; the tokens come by themselves."""
    await world.real.register("", client_id="television", grant_type=DEVICE_CODE)
    await world.integration("television", world.real, client_id="television")
    begun = await world.connect("television", "device_code", "sam")
    device = begun["device"]
    assert (begun["state"], device["verification_uri"]) == ("pending_consent", f"{world.real.issuer}/device/")
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as browser:
        page = await browser.get(begun["connect_url"])
        assert device["user_code"] in page.text
        await world.real.scripted_consent(f"{device['verification_uri']}?user_code={device['user_code']}")
        connection = await world.api.state(begun["id"], "active", SOON_S)
        assert "is connected" in (await browser.get(begun["connect_url"])).text
    lease = await world.api.lease("television", "sam")
    assert (await world.real.whoami(lease["access_token"])).json()["user"] == world.real.user
    assert connection["device"] is None  # shown while it is waited for
    refreshed = await world.api.post(f"/v1/connections/{begun['id']}/refresh")
    assert refreshed["generation"] == 2
    assert (await world.revoked(connection))["revocation"] == "confirmed"


async def test_rfc8628_3_5_slow_down_and_silence_are_heeded(world: World):
    await world.integration("slowly", world.idp)
    world.idp.script(error("authorization_pending"), drop(), error("slow_down"))
    begun = await world.connect("slowly", "device_code", "sam")
    await world.idp.until("token", 3, timeout=PATIENCE_S)
    world.idp.approve(begun["device"]["user_code"])
    await world.api.state(begun["id"], "active", SOON_S)
    assert world.idp.count("device") == 1
    asked = [call.at for call in world.idp.calls if call.endpoint == "token"]
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert [round(wait) for wait in waits[:3]] == pytest.approx([1, 2, 7], abs=1)  # +5 s for good


async def test_rfc8628_a_code_survives_the_workers_restart(world: World):
    await world.integration("restarted", world.idp)
    begun = await world.connect("restarted", "device_code", "sam")
    await world.idp.until("token", 1)
    pid = world.platform.worker_pid()
    os.kill(pid, signal.SIGKILL)
    world.idp.approve(begun["device"]["user_code"])
    await world.platform.new_worker(pid)
    await world.api.state(begun["id"], "active", SOON_S)
    assert world.idp.count("device") == 1  # the same code, not another one


@pytest.mark.parametrize(
    ("answer", "state"), [("access_denied", "denied"), ("expired_token", "consent_expired")]
)
async def test_rfc8628_an_ended_code_ends_the_connection(world: World, answer: str, state: str):
    await world.integration(f"over-{state.replace('_', '-')}", world.idp)
    world.idp.script(error(answer))
    begun = await world.connect(f"over-{state.replace('_', '-')}", "device_code", "sam")
    ended = await world.api.state(begun["id"], state, SOON_S)
    assert ended["device"] is None
    asked = world.idp.count("token")
    await asyncio.sleep(2)  # twice the interval: no further poll
    assert world.idp.count("token") == asked == 1


async def test_the_command_shows_a_device_code(world: World):
    await world.integration("shown", world.idp)

    async def approved() -> None:
        await world.idp.until("device", 1)
        await world.idp.until("token", 1)
        begun = await world.api.get("/v1/connections?integration=shown")
        device = (await world.api.connection(begun["items"][0]["id"]))["device"]
        world.idp.approve(device["user_code"])

    approving = asyncio.create_task(approved())
    command = ("connections", "create", "shown", "sam", "--flow", "device_code", "--wait", "30", "-o", "json")
    code, out, err = await world.run(*command)
    await approving
    assert code == 0, err
    assert err.startswith(f"open {world.idp.url('activate')} and enter ")
    assert json.loads(out)["state"] == "active"


async def test_rfc8693_token_exchange_from_another_connection(world: World):
    """The source's token is exchanged; one that is over is made new by the source's own workflow first."""
    await world.integration("front", world.idp)
    await world.integration("back", world.idp)
    source = await world.active("front", "client_credentials")
    connection = await world.active("back", "token_exchange", source=source["id"], audience="backend")
    lease = await world.api.lease("front", "nightly")
    assert world.idp.count("token", grant_type=TOKEN_EXCHANGE, subject_token=lease["access_token"]) == 1
    other = await world.active("front", "client_credentials", subject="another")
    with pytest.raises(ApiProblem, match="already_exists"):
        await world.connect("back", "token_exchange", source=other["id"])
    await asyncio.sleep(TOKEN_S + 1)  # until the source's token has expired without a lease
    assert world.idp.active(lease["access_token"]) is False

    async def exchanged() -> dict | None:
        with contextlib.suppress(ApiProblem):
            return await world.api.lease("back", "nightly")
        return None

    second = await wait_until(exchanged, "an exchange of the newer token", SOON_S)
    assert world.idp.active(second["access_token"])
    assert world.idp.count("token", audience="backend") >= 2
    assert (await world.revoked(connection))["revocation"] == "confirmed"
    assert (await world.api.connection(source["id"]))["state"] == "active"


async def test_rfc8693_token_exchange_of_a_given_token(world: World):
    await world.integration("bridge", world.idp)
    theirs, family = world.idp.grant()["access_token"], world.idp.families[-1]
    connection = await world.active("bridge", "token_exchange", subject_token=theirs)
    family.alive = False  # it has ended over there

    async def refused() -> ApiProblem | None:
        """A refresh ahead may be under way, which brings a token or is refused itself."""
        try:
            await world.api.post(f"/v1/connections/{connection['id']}/refresh")
        except ApiProblem as no:
            return no
        return None

    assert (await wait_until(refused, "a refresh that is refused", SOON_S)).code == "grant_rejected"
    assert (await world.api.connection(connection["id"]))["state"] == "needs_reauth"
    assert (await world.revoked(connection))["revocation"] == "confirmed"
    assert world.idp.count("revoke", token=theirs) == 0  # what was brought is not ours to end


async def test_a_source_needs_a_permit_to_lease_it(world: World):
    await world.integration("hidden", world.idp)
    source = await world.active("hidden", "client_credentials")
    await world.admin.put("/v1/apps/stranger", {})
    permit = {"integration": "bridge", "actions": ["token", "connect"]}
    await world.admin.put("/v1/apps/stranger/permits/one", permit)
    key = (await world.admin.post("/v1/apps/stranger/keys"))["key"]
    await world.integration("bridge", world.idp)
    body = {"integration": "bridge", "subject": "x", "flow": "token_exchange", "source": source["id"]}
    async with EvergrantApi(world.platform.api, key) as stranger:
        with pytest.raises(ApiProblem) as refused:
            await stranger.post("/v1/connections", body)
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("flow", "credential", "token", "kind"),
    [
        ("api_key", {"api_key": "sk-live-1"}, "sk-live-1", "ApiKey"),
        ("basic", {"username": "sam", "password": "pass:word"}, "c2FtOnBhc3M6d29yZA==", "Basic"),
    ],
)
async def test_static_credentials_are_leased_like_any_other(
    world: World, flow: str, credential: dict, token: str, kind: str
):
    name = flow.replace("_", "-")
    await world.integration(name, world.idp)
    connection = await world.active(name, flow, credential=credential)
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
async def test_input_of_another_flow_is_refused(world: World, body: dict):
    await world.integration("strictly", world.idp)
    with pytest.raises(ApiProblem) as refused:
        await world.api.post("/v1/connections", {"integration": "strictly", "subject": "x", **body})
    assert (refused.value.status, refused.value.code) == (400, "invalid_request")


async def test_a_first_token_is_requested_until_it_is_granted(world: World):
    """What time or an admin repairs is tried again by the workflow; the row says why it waits."""
    await world.integration("slow", world.idp)
    world.idp.script(status(503, {"Retry-After": "2"}), error("invalid_client", 401))
    begun = await world.connect("slow", "client_credentials")

    async def why() -> str | None:
        return (await world.api.connection(begun["id"]))["reason"]

    assert await wait_until(why, "a reason", SOON_S) == "provider_error"
    with pytest.raises(ApiProblem) as refused:  # no link: no subject consents in this flow
        await world.api.lease("slow", "nightly")
    assert refused.value.code == "provider_error"

    async def ours() -> bool | None:
        return await why() == "client_rejected" or None

    await wait_until(ours, "the second answer", SOON_S)
    assert (await world.connect("slow", "client_credentials"))["id"] == begun["id"]
    assert world.idp.count("token") == 2  # an admin's to repair: looked at again slowly


async def test_a_live_connection_keeps_its_flow_and_resources(world: World):
    """A request for other resources or another flow gets no token of the existing grant."""
    await world.integration("one", world.idp)
    await world.active("one", "client_credentials", resources=["https://api.example/v1"])
    for flow, more in (
        ("authorization_code", {}),
        ("client_credentials", {"resources": ["https://api.example/v2"]}),
        ("client_credentials", {"audience": "backend"}),
    ):
        with pytest.raises(ApiProblem) as refused:
            await world.connect("one", flow, **more)
        assert (refused.value.status, refused.value.code) == (409, "already_exists")
    again = await world.api.post("/v1/connections", {"integration": "one", "subject": "nightly"})
    assert (again["flow"], again["state"]) == ("client_credentials", "active")
