"""Flows against panva's oidc-provider, a certified server that is as strict as the RFCs let it be.

A refresh token that is used twice ends its whole grant there, so a life that survives is one in
which nothing was sent twice. `docs/flows.md` names these tests.
"""

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
import pytest_asyncio
from evergrant import AsyncEvergrant
from joserfc.jwk import ECKey

from examples.demo.evergrant_api import ApiProblem
from examples.demo.waiting import wait_until
from tests.e2e.world import World, define, running
from tests.fakes.assertions import JWT_BEARER
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.oidc_provider import CODE, OidcProvider, running_oidc_provider

KEY = ECKey.generate_key("P-256", {"kid": "ours-1", "alg": "ES256", "use": "sig"})
JOB = {"repository_id": "74", "repository_owner_id": "65", "ref": "refs/heads/main"}
PRIVATE = {"private": KEY.as_pem(private=True).decode(), "id": "ours-1"}

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


class Oidc(World):
    """With the server."""

    server: OidcProvider

    async def at_server(self, name: str, **body: Any) -> dict[str, Any]:
        said = {"provider": "generic", "issuer": self.server.issuer, "default_scopes": ["read"], **body}
        return await self.integration(name, said)

    async def browsing(self, name: str, dpop: bool = False, **metadata: Any) -> dict[str, Any]:
        """An integration of the code grant, with a client that the test knows the secret of."""
        bound = {"dpop": True, "default_scopes": ["openid", "read"]} if dpop else {}
        made = await self.at_server(name, client_id="not-yet", client_auth="none", **bound)
        client = await self.server.register(made["redirect_uri"], **metadata)
        auth = client["token_endpoint_auth_method"]
        secret = {"client_secret": client["client_secret"]} if auth != "none" else {}
        await self.at_server(name, client_id=client["client_id"], client_auth=auth, **secret, **bound)
        return client

    async def machine(self, name: str, dpop: bool = False, **metadata: Any) -> dict[str, Any]:
        """An integration of a flow without a subject, and its client."""
        bound = {"dpop": True} if dpop else {}
        client = await self.server.register(**metadata)
        key = "jwks" in metadata
        ours = {"client_key": PRIVATE} if key else {"client_secret": client["client_secret"]}
        auth = client["token_endpoint_auth_method"]
        await self.at_server(name, client_id=client["client_id"], client_auth=auth, **ours, **bound)
        return client

    async def consented(self, integration: str, **more: Any) -> dict:
        """A connection that its subject has just consented to."""
        begun = await self.begin(integration, flow=CODE, **more)
        landing = await self.server.consent(begun["connect_url"])
        assert landing.response is not None
        assert landing.response.status_code == 200, landing.response.text
        return await self.active(begun)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Oidc]:
    data = tmp_path_factory.mktemp("oidc") / "data"
    async with running_oidc_provider(claims=JOB) as server, running(Oidc, data, server.issuer) as world:
        world.server = server
        yield world


async def test_from_registration_to_revocation(world: Oidc):
    """Registered by itself (RFC 7591), code with PKCE and `iss` (RFC 9207), strict rotation, revoked."""
    made = await world.at_server("registered", registration="dynamic")
    assert made["client_id"]
    connection = await world.consented("registered")
    (asked,) = await world.server.calls("pushed_authorization_request", client_id=made["client_id"])
    assert asked["asked"]["code_challenge_method"] == "S256"
    first = await world.api.lease("registered", "sam")
    for generation in (2, 3):
        assert (await world.refreshed(connection))["generation"] == generation
    refreshes = await world.server.calls("token", grant_type="refresh_token")
    sent = [call["asked"]["refresh_token"] for call in refreshes]
    assert len(set(sent)) == len(sent)  # a second use would have ended it
    last = await world.api.lease("registered", "sam")
    assert last["access_token"] != first["access_token"]
    witness = await world.server.register()
    assert (await world.server.active(witness, last["access_token"]))["active"]
    assert (await world.revoked(connection))["revocation"] == "confirmed"
    assert not (await world.server.active(witness, last["access_token"]))["active"]


async def test_rfc6749_6_narrower_tokens_come_from_one_strictly_rotated_chain(world: Oidc):
    """Each costs a refresh, a token used twice would end the grant, and the server says what each may do."""
    modes = {"auth_modes": [CODE], "client_auth": "client_secret_basic", "offline_scope": "offline_access"}
    document = {"name": "narrows", "display_name": "Narrows", "discovery": True, "down_scoping": "refresh"}
    await define(world.admin, {**document, **modes})
    at = {"provider": "narrows", "default_scopes": ["openid", "read", "write"]}
    made = await world.at_server("narrow", client_id="not-yet", client_secret="not-yet", **at)
    client = await world.server.register(made["redirect_uri"])
    secret = {"client_id": client["client_id"], "client_secret": client["client_secret"]}
    await world.at_server("narrow", **secret, **at)
    connection = await world.consented("narrow")
    lease = {"integration": "narrow", "subject": "sam"}
    wide = await world.api.post("/v1/lease", lease)
    witness = await world.server.register()
    for scope in ("read", "write", "read"):
        narrow = await world.api.post("/v1/lease", {**lease, "scopes": [scope], "exact": True})
        said = await world.server.active(witness, narrow["access_token"])
        assert (said["active"], set(said["scope"].split()) - {"offline_access"}) == (True, {scope})
    said = await world.server.active(witness, wide["access_token"])
    assert (said["active"], {"read", "write"} <= set(said["scope"].split())) == (True, True)
    assert (await world.api.post("/v1/lease", lease))["access_token"] == wide["access_token"]
    assert (await world.refreshed(connection))["generation"] == 4
    refreshes = await world.server.calls("token", client_id=client["client_id"], grant_type="refresh_token")
    assert [call["asked"].get("scope", "").split()[:1] for call in refreshes] == [["read"], ["write"], []]
    assert (await world.revoked(connection))["revocation"] == "confirmed"


async def test_rfc9207_a_callback_that_lost_its_issuer_is_refused(world: Oidc):
    client = await world.browsing("mixed-up")
    begun = await world.begin("mixed-up", flow=CODE)
    callback = (await world.admin.get("/v1/integrations/mixed-up"))["redirect_uri"]
    async with world.server.person("sam") as person:
        landing = await person.consent(begun["connect_url"], stop_before=callback)
        query = dict(parse_qsl(urlsplit(landing.url).query))
        assert query.pop("iss") == world.server.issuer
        refused = (await person.consent(f"{callback}?{urlencode(query)}")).response
    assert refused is not None
    assert (refused.status_code, "callback_invalid" in refused.text) == (400, True)
    assert not await world.server.calls("token", client_id=client["client_id"])
    assert (await world.api.connection(begun["id"]))["state"] == "pending_consent"


async def test_rfc9700_4_14_a_stolen_refresh_token_ends_the_grant_and_the_subject_is_asked(world: Oidc):
    """A thief uses a spent token: the server ends the family, and the failure names the repairer."""
    client = await world.browsing("stolen")
    connection = await world.consented("stolen")
    await world.refreshed(connection)
    (use,) = await world.server.calls("token", client_id=client["client_id"], grant_type="refresh_token")
    thief = await world.server.token(
        client, grant_type="refresh_token", refresh_token=use["asked"]["refresh_token"]
    )
    assert (thief.status_code, thief.json()["error"]) == (400, "invalid_grant")
    with contextlib.suppress(ApiProblem):  # or the row as it stands by then, whichever is there first
        await world.refreshed(connection)
    condemned = await world.api.state(connection["id"], "needs_reauth", PATIENCE_S)
    assert (condemned["reason"], condemned["repairer"]) == ("grant_rejected", "subject")
    again = await world.consented("stolen")  # the same link a lease would have given
    assert (again["id"], again["generation"]) == (connection["id"], 3)
    assert (await world.revoked(again))["revocation"] == "confirmed"


async def test_rfc9126_the_request_is_pushed_and_the_browser_carries_a_reference(world: Oidc):
    """Also in a second consent, to a server that takes nothing else from this client."""
    client = await world.browsing("pushing", require_pushed_authorization_requests=True)
    connection = await world.consented("pushing")
    for asked in await world.server.calls("authorization", client_id=client["client_id"]):
        assert set(asked["asked"]) == {"client_id", "request_uri"}
    (pushed,) = await world.server.calls("pushed_authorization_request", client_id=client["client_id"])
    assert {"state", "code_challenge", "redirect_uri", "scope"} <= set(pushed["asked"])
    assert (await world.refreshed(connection))["generation"] == 2
    assert (await world.revoked(connection))["revocation"] == "confirmed"


async def test_rfc9126_2_3_a_refused_request_names_the_repairer(world: Oidc):
    """Our secret is wrong: the page says so before the browser leaves, and the same link works later."""
    client = await world.browsing("mistaken")
    told = {"client_id": client["client_id"], "client_auth": "client_secret_basic"}
    await world.at_server("mistaken", **told, client_secret="wrong")
    begun = await world.begin("mistaken", flow=CODE)
    refused = (await world.server.consent(begun["connect_url"])).response
    assert refused is not None
    assert (refused.status_code, "client_rejected" in refused.text) == (424, True)
    assert not await world.server.calls("authorization", client_id=client["client_id"])
    await world.at_server("mistaken", **told, client_secret=client["client_secret"])
    again = await world.begin("mistaken", flow=CODE)
    assert again["id"] == begun["id"]
    await world.server.consent(again["connect_url"])
    await world.active(begun)


@pytest.mark.parametrize(
    "metadata",
    [
        {"dpop_bound_access_tokens": True},
        {"client_name": "wants a nonce"},  # each token request is answered with one first
        {
            "token_endpoint_auth_method": "none",
            "client_name": "wants a nonce",
        },  # its refresh tokens are bound
    ],
    ids=["confidential", "nonces", "public"],
)
async def test_rfc9449_tokens_bound_to_a_key_that_outlives_refreshes_and_workers(
    world: Oidc, metadata: dict[str, Any], request: pytest.FixtureRequest
):
    """Strict rotation: had a request for a nonce been a use of the token, the grant would be gone."""
    name = f"bound-{request.node.callspec.id}"
    client = await world.browsing(name, dpop=True, **metadata)
    connection = await world.consented(name)
    asked = (await world.server.calls("pushed_authorization_request", client_id=client["client_id"]))[-1]
    if "client_name" not in metadata:  # a worker that is killed, once
        pid = world.platform.worker_pid()
        os.kill(pid, signal.SIGKILL)
        await world.platform.new_worker(pid)
    for generation in (2, 3):
        assert (await world.refreshed(connection))["generation"] == generation
    lease = await world.api.lease(name, "sam")
    assert lease["token_type"] == "DPoP"
    bare = await world.server.userinfo(f"DPoP {lease['access_token']}")
    assert bare.status_code in (400, 401)  # a token that leaked opens nothing
    target = {"url": world.platform.api, "api_key": world.key}
    async with AsyncEvergrant(**target) as app:
        auth = app.auth(name, "sam", origins=world.server.issuer)
        async with httpx2.AsyncClient(auth=auth, trust_env=False, timeout=PATIENCE_S) as http:
            for _ in range(2):  # the second with the nonce in mind
                assert (await http.get(f"{world.server.issuer}/me")).json() == {"sub": "sam"}
    said = await world.server.active(await world.server.register(), lease["access_token"])
    assert said["cnf"]["jkt"] == asked["asked"]["dpop_jkt"]  # one key, from the browser's leaving on
    tokens = await world.server.calls("token", client_id=client["client_id"])
    assert {call["proof"] for call in tokens} == {True}
    wanted = [call for call in tokens if call["error"] == "use_dpop_nonce"]
    assert bool(wanted) is ("client_name" in metadata)
    assert (await world.revoked(connection))["revocation"] == "confirmed"


async def test_rfc9449_a_machines_tokens_are_bound_as_well(world: Oidc):
    client = await world.machine("machine-bound", dpop=True)
    begun = await world.begin("machine-bound", flow="client_credentials")
    connection = await world.active(begun)
    assert (await world.api.lease("machine-bound", "sam"))["token_type"] == "DPoP"
    assert (await world.refreshed(connection))["generation"] == 2
    tokens = await world.server.calls("token", client_id=client["client_id"])
    assert {call["proof"] for call in tokens} == {True}


async def test_rfc8707_2_a_codes_tokens_are_for_the_resource(world: Oidc):
    await world.browsing("aimed")
    connection = await world.consented("aimed", resources=[world.server.resource])
    witness = await world.server.register()
    for generation in (1, 2):
        lease = await world.api.lease("aimed", "sam")
        said = await world.server.active(witness, lease["access_token"])
        assert (lease["generation"], said["aud"]) == (generation, world.server.resource)
        if generation == 1:
            await world.refreshed(connection)
    assert (await world.revoked(connection))["revocation"] == "confirmed"


@pytest.mark.parametrize(
    ("name", "rule", "subject", "others"),
    [
        ("by-sub", {}, "sam", ["victim"]),
        (
            "by-email",
            {"claim": "email", "domains": ["corp.example"]},
            "sam@corp.example",
            ["victim", "new-sam"],  # whose address the issuer hasn't verified
        ),
    ],
)
async def test_the_tenants_issuer_says_who_it_is_before_the_provider_is_asked(
    world: Oidc, name: str, rule: dict[str, Any], subject: str, others: list[str]
):
    """The binding `oidc`: the server is the issuer of a first client's login, and a second one's provider."""
    scope = "openid email offline_access read write"
    issuer = await world.browsing(f"staff-{name}", scope=scope)
    crm = await world.browsing(name, scope=scope)
    known = {"client_id": crm["client_id"], "client_auth": "client_secret_basic"}
    login = {"integration": f"staff-{name}", **rule}
    await world.at_server(name, **known, binding="oidc", login=login)
    for person in others:
        begun = await world.begin(name, subject)
        refused = (await world.server.consent(begun["connect_url"], person)).response
        assert refused is not None
        assert (refused.status_code, "subject_mismatch" in refused.text) == (409, True)
        assert subject not in refused.text
    assert not await world.server.calls("authorization", client_id=crm["client_id"])
    assert not await world.server.calls("pushed_authorization_request", client_id=crm["client_id"])

    begun = await world.begin(name, subject)
    landing = await world.server.consent(begun["connect_url"])
    assert landing.response is not None
    assert landing.response.status_code == 200, landing.response.text
    await world.active(begun)
    assert (await world.api.lease(name, subject))["generation"] == 1
    logins = await world.server.calls("token", client_id=issuer["client_id"])
    assert [call["status"] for call in logins] == [200] * (len(others) + 1)
    assert len(await world.server.calls("token", client_id=crm["client_id"])) == 1


async def test_rfc7523_2_2_private_key_jwt_and_rfc8707_resource(world: Oidc):
    jwks = {"keys": [KEY.as_dict(private=False)]}
    client = await world.machine("signing", token_endpoint_auth_method="private_key_jwt", jwks=jwks)
    begun = await world.begin("signing", flow="client_credentials", resources=[world.server.resource])
    connection = await world.active(begun)
    lease = await world.api.lease("signing", "sam")
    witness = await world.server.register()
    said = await world.server.active(witness, lease["access_token"])
    assert (said["active"], said["aud"], said["client_id"]) == (
        True,
        world.server.resource,
        client["client_id"],
    )
    assert (await world.refreshed(connection))["generation"] == 2
    assert await world.server.calls("token", grant_type="client_credentials", client_id=client["client_id"])
    assert (await world.revoked(connection))["revocation"] == "confirmed"


async def test_a_workload_gets_a_token_also_once_its_issuer_has_another_key(world: Oidc):
    """A worker reads the keys: when the issuer is put, and when a token has a key that isn't among them."""
    public_url = world.platform.api
    job = {"kind": "github_actions", "issuer": world.server.issuer}
    await world.admin.put("/v1/issuers/jobs", job)

    async def read() -> bool | None:
        return (await world.admin.get("/v1/issuers/jobs"))["keys"] == 1 or None

    await wait_until(read, "the issuer's keys", PATIENCE_S)
    rule = {"method": "workload_identity", "parameters": {"issuer": "jobs", "claims": JOB}}
    await world.admin.put("/v1/apps/jobs/credentials/ci", rule)
    app_id = (await world.admin.get("/v1/apps/jobs"))["id"]

    async def ask(audience: str = public_url) -> httpx2.Response:
        form = {"grant_type": "client_credentials", "client_id": app_id, "client_assertion_type": JWT_BEARER}
        assertion = await world.server.workload_token(audience)
        async with httpx2.AsyncClient(base_url=public_url, trust_env=False, timeout=PATIENCE_S) as http:
            return await http.post("/oauth/token", data={**form, "client_assertion": assertion})

    for kid in ("only", "second"):
        if kid != "only":
            await world.server.rotate(kid)
        answer = await ask()
        assert answer.status_code == 200, answer.text
        async with AsyncEvergrant(public_url, answer.json()["access_token"]) as app:
            assert [it async for it in app.connections(integration="none-of-these")] == []
    assert (await ask("https://elsewhere.example")).status_code == 401
