"""The token endpoint: a proven app gets a token that leases; errors have the form of RFC 6749 section 5.2."""

from typing import Any

import pytest

from activities.pruning import Periods, prune_store
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import new_id
from tests.fakes.api import OTHER, TENANT, Api
from tests.fakes.assertions import JWT_BEARER, AssertingApp, asserting_app, new_key, public_set

CREDENTIAL = "/v1/apps/sync/credentials/main"


@pytest.fixture
async def app(api: Api, admin: str) -> AssertingApp:
    await api.active_for("sync", Action.TOKEN)
    return await asserting_app(api, admin, "sync")


async def test_an_assertion_buys_a_token_that_leases(api: Api, app: AssertingApp):
    answer = await app.ask(client_id=app.id)
    assert answer.status_code == 200
    assert answer.json() | {"access_token": ""} == {
        "access_token": "",
        "token_type": "Bearer",
        "expires_in": 600,
    }
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    token = answer.json()["access_token"]
    for _ in range(2):  # the second from memory
        assert (await api.lease(token)).json()["access_token"] == "at-1"
    (issued,) = await api.records(AuditAction.TOKEN_ISSUED)
    assert issued.context.by == "app:sync"
    assert (issued.detail["app"], issued.detail["method"]) == ("sync", "private_key_jwt")
    assert token not in str(await api.records())


@pytest.mark.parametrize("alg", ["RS256", "PS512", "ES384", "ES512", "Ed25519"])
async def test_each_algorithm_is_accepted_from_a_key_that_is_registered_for_it(
    api: Api, admin: str, alg: str
):
    await api.app_with("sync", Action.TOKEN)
    app = await asserting_app(api, admin, "sync", alg)
    assert (await app.ask()).status_code == 200
    other = {"PS512": "PS256", "RS256": "PS256"}.get(alg)
    if other:
        assert (await app.ask(app.assertion({"alg": other}))).status_code == 401


async def test_rfc8414_the_metadata_name_issuer_endpoint_and_methods(api: Api):
    found = (await api.get("/.well-known/oauth-authorization-server")).json()
    issuer = api.parts.settings.public_url
    assert (found["issuer"], found["token_endpoint"]) == (issuer, f"{issuer}/oauth/token")
    grants = {"client_credentials", "authorization_code", "refresh_token"}
    grants |= {"urn:ietf:params:oauth:grant-type:token-exchange"}
    assert grants <= set(found["grant_types_supported"])
    assert found["revocation_endpoint"] == f"{issuer}/oauth/revoke"
    assert found["token_endpoint_auth_methods_supported"] == ["none", "private_key_jwt", "spiffe_jwt"]
    assert "ES256" in found["token_endpoint_auth_signing_alg_values_supported"]
    assert not {"none", "HS256"} & set(found["token_endpoint_auth_signing_alg_values_supported"])


BAD_REQUESTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no grant type": ({"grant_type": None}, 400, "invalid_request"),
    "an empty grant type": ({"grant_type": ""}, 400, "invalid_request"),
    "another grant": ({"grant_type": "password"}, 400, "unsupported_grant_type"),
    "a scope": ({"scope": "admin"}, 400, "invalid_scope"),
    "no type": ({"client_assertion_type": None}, 400, "invalid_request"),
    "no assertion": ({"client_assertion_type": None, "client_assertion": ""}, 401, "invalid_client"),
    "another type": ({"client_assertion_type": "urn:x"}, 401, "invalid_client"),
    "a secret too": ({"client_secret": "x"}, 401, "invalid_client"),
    "another client": ({"client_id": "app_0000000000000000000000"}, 401, "invalid_client"),
    "no JWT": ({"client_assertion": "x.y"}, 401, "invalid_client"),
    "not ASCII": ({"client_assertion": "é.é.é"}, 401, "invalid_client"),
    "nested": ({"client_assertion": "W1tb" * 9000 + ".e30.x"}, 401, "invalid_client"),
}


async def test_rfc6749_5_2_a_bad_request_has_its_error(app: AssertingApp):
    for name, (changes, status, error) in BAD_REQUESTS.items():
        said = dict(changes)
        answer = await app.ask(said.pop("client_assertion", None), **said)
        assert (answer.status_code, answer.json()["error"]) == (status, error), (name, answer.text)
        assert ("www-authenticate" in answer.headers) is (status == 401)
        assert answer.headers["cache-control"] == "no-store"


async def test_rfc6749_3_2_parameters_stand_once_and_in_the_body_alone(api: Api, app: AssertingApp):
    form = f"grant_type=client_credentials&client_assertion_type={JWT_BEARER}&client_assertion="
    kind = {"Content-Type": "application/x-www-form-urlencoded"}

    async def sent(path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        answer = await api.client.post(path, content=body, headers=headers)
        return answer.status_code, answer.json()["error"]

    def whole() -> bytes:
        return (form + app.assertion()).encode()

    refused = (400, "invalid_request")
    assert await sent("/oauth/token", whole() + b"&grant_type=client_credentials", kind) == refused
    assert await sent("/oauth/token", whole() + b"&x=&x=1", kind) == refused
    assert await sent("/oauth/token?client_id=" + app.id, whole(), kind) == refused
    assert await sent("/oauth/token", whole(), {"Content-Type": "application/json"}) == refused
    assert await sent("/oauth/token", whole() + b"&y=" + b"%00" * 30_000, kind) == refused
    assert await sent("/oauth/token", b"&".join([b"a%d=" % n for n in range(40)]), kind) == refused
    assert await sent("/oauth/token", b"a=%ff", kind) == refused
    basic = kind | {"Authorization": "Basic eDp5"}
    assert await sent("/oauth/token", b"grant_type=client_credentials", basic) == (401, "invalid_client")


async def test_a_stranger_learns_from_no_answer_which_apps_exist(api: Api, admin: str, app: AssertingApp):
    await api.app_with("bare")
    bare, unknown = (await api.app_named("bare")).id, new_id("app")
    wrong = [AssertingApp(api, it, new_key()) for it in (app.id, bare, unknown)]
    answers = [await it.ask() for it in wrong]
    assert {it.status_code for it in answers} == {401}
    assert len({it.content for it in answers}) == 1
    late = [(await it.ask(it.assertion(exp=1))).content for it in wrong]
    assert len(set(late)) == 1
    assert late[0] != answers[0].content


async def test_refusals_of_an_app_are_one_record_and_then_counted(api: Api, app: AssertingApp):
    for _ in range(30):
        assert (
            await app.ask(app.assertion(aud="https://elsewhere.example"), client_id=app.id)
        ).status_code == 401
    assert len(await api.records(AuditAction.TOKEN_REFUSED, of=app.id)) == 1
    await api.app.state.refusals.stop()
    first, last = sorted(await api.records(AuditAction.TOKEN_REFUSED, of=app.id), key=lambda it: it.seq)
    assert "aud" in first.detail["rule"]
    assert last.detail["repeated"] == 29


async def test_a_token_ends_after_ten_minutes_also_from_memory_and_is_forgotten(api: Api, app: AssertingApp):
    token = await app.token()
    assert (await api.lease(token)).status_code == 200
    api.clock.advance(600)
    for answer in (await api.lease(token), await api.get("/v1/connections", token)):
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert "/oauth/token" in answer.json()["detail"]
    assert (await api.lease(await app.token())).status_code == 200
    api.clock.advance(301)
    await prune_store(api.worker, api.clock, Periods())
    async with api.worker.read() as tx:
        assert await tx.tokens.find(token[4:30]) is None
    assert (await api.lease(token)).status_code == 401


async def test_a_used_assertion_is_known_until_no_clock_accepts_it(api: Api, app: AssertingApp):
    """The pass that forgets runs where the clock is ahead of the API's."""
    assertion = app.assertion()
    assert (await app.ask(assertion)).status_code == 200
    api.clock.advance(290)
    await prune_store(api.worker, api.clock, Periods())
    api.clock.advance(-290)
    assert (await app.ask(assertion)).status_code == 401


async def test_a_disabled_app_gets_no_token_and_its_tokens_lease_nothing(
    api: Api, admin: str, app: AssertingApp
):
    token = await app.token()
    assert (await api.lease(token)).status_code == 200
    await api.call("PUT", "/v1/apps/sync", admin, json={"disabled": True})
    assert (await api.lease(token)).json()["code"] == "app_disabled"
    refused = await app.ask()
    assert (refused.status_code, refused.json()["error"]) == (400, "unauthorized_client")
    await api.call("PUT", "/v1/apps/sync", admin, json={"disabled": False})
    assert (await api.lease(token)).status_code == 200


@pytest.mark.parametrize("change", ["replaced", "deleted", "app deleted"])
async def test_a_changed_credential_ends_its_tokens_at_once(
    api: Api, admin: str, app: AssertingApp, change: str
):
    token = await app.token()
    assert (await api.lease(token)).status_code == 200
    if change == "replaced":
        body = {"method": "private_key_jwt", "parameters": {"jwks": public_set(new_key())}}
        assert (await api.call("PUT", CREDENTIAL, admin, json=body)).status_code == 200
    else:
        path = CREDENTIAL if change == "deleted" else "/v1/apps/sync"
        assert (await api.call("DELETE", path, admin)).status_code == 204
    assert (await api.lease(token)).status_code == 401
    assert (await api.get("/v1/connections", token)).status_code == 401
    assert (await app.ask()).status_code == 401


async def test_another_credential_of_the_app_goes_on(api: Api, admin: str, app: AssertingApp):
    first = await app.token()
    second = AssertingApp(api, app.id, new_key())
    body = {"method": "private_key_jwt", "parameters": {"jwks": public_set(second.key)}}
    await api.call("PUT", "/v1/apps/sync/credentials/next", admin, json=body)
    assert (await api.lease(first)).status_code == 200
    newer = await second.token()
    await api.call("DELETE", CREDENTIAL, admin)
    assert (await api.lease(first)).status_code == 401
    assert (await api.lease(newer)).status_code == 200
    (listed,) = (await api.get("/v1/apps/sync/credentials", admin)).json()["items"]
    assert (listed["name"], listed["last_used_at"] is not None) == ("next", True)


async def test_apps_of_two_tenants_do_not_meet(api: Api, admin: str, app: AssertingApp):
    """The same name in another tenant, and the same key: a token is of the app whose id it names."""
    await api.app_with("sync", Action.TOKEN, tenant=OTHER)
    async with api.worker.read() as tx:
        foreign = await tx.access.app_by_name(OTHER, "sync")
    assert foreign is not None
    assert (await AssertingApp(api, foreign.id, app.key).ask()).status_code == 401
    async with api.worker.read() as tx:
        assert (await tx.credentials.of_app(OTHER, foreign.id)) == []
        assert len(await tx.credentials.of_app(TENANT, (await api.app_named("sync")).id)) == 1
