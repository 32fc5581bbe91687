"""An identity provider's grant (ID-JAG) as an attacker brings it: for one client, one server, once."""

import secrets
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import OTHER, PUBLIC_URL, Api
from tests.fakes.assertions import JWT_BEARER as CLIENT_ASSERTION
from tests.fakes.assertions import AssertingApp, asserting_app, signed
from tests.fakes.providers.workload_issuer import new_key
from tests.security.delegation.delegating import LOGIN, RULE, Delegating, id_of, resource

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
PROFILE = "urn:ietf:params:oauth:grant-profile:id-jag"
TYPE = "oauth-id-jag+jwt"
ENABLED = {"issuer": "staff", "token_type": "id_jag", "audience": PUBLIC_URL, "actors": ["front"]}


class Granting:
    """`front` authenticates by a key; the tenant's rule `grants` lets the issuer `staff` grant it access."""

    def __init__(self, some: Delegating, front: AssertingApp) -> None:
        self.some, self.front, self.api = some, front, some.api

    def jag(self, *, key: Any = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """The grant for `front`; changes of its claims, None leaves one out."""
        now = int(self.api.clock.now().timestamp())
        claims = {
            **{"iss": LOGIN, "sub": "user-1", "aud": PUBLIC_URL, "client_id": self.front.id},
            **{"jti": secrets.token_hex(8), "iat": now, "exp": now + 300, **changes},
        }
        top = {"alg": "ES256", "kid": "one", "typ": TYPE, **(header or {})}
        said = {name: it for name, it in claims.items() if it is not None}
        return signed(self.some.key if key is None else key, top, said)

    async def ask(self, jag: str, by: AssertingApp | None = None, **more: Any) -> httpx2.Response:
        client = {
            "client_assertion_type": CLIENT_ASSERTION,
            "client_assertion": (by or self.front).assertion(),
        }
        form = {"grant_type": JWT_BEARER, "assertion": jag, **client, **more}
        return await self.api.client.post("/oauth/token", data=form)

    async def token(self, **claims: Any) -> str:
        answer = await self.ask(self.jag(**claims))
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]

    async def refused(self, jag: str, by: AssertingApp | None = None, **more: Any) -> tuple[str, str]:
        answer = await self.ask(jag, by, **more)
        assert answer.status_code in (400, 401), answer.text
        return answer.json()["error"], answer.json()["error_description"]


@pytest.fixture
async def granting(some: Delegating, admin: str) -> Granting:
    await some.put("/v1/delegation-rules/grants", ENABLED)
    return Granting(some, await asserting_app(some.api, admin, "front"))


async def test_id_jag_4_4_a_grant_buys_a_token_for_its_subject_alone(api: Api, granting: Granting):
    crm = await api.integration()
    await api.active(crm)
    await api.active(crm, "at-2", subject="user-2")
    url = resource("integrations", "crm")
    answer = await granting.ask(granting.jag(scope="read_user", resource=[url]))
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    body = answer.json()
    token = body.pop("access_token")
    assert 3590 < body.pop("expires_in") <= 3600
    known = {"delegation_id": id_of(token), "session_id": id_of(token)}
    assert body == {"token_type": "Bearer", "scope": "read_user", "resource": [url], **known}
    assert (await api.lease(token)).json()["access_token"] == "at-1"
    assert (await api.lease(token, subject="user-2")).json()["code"] == "not_found"
    (issued,) = await api.records(AuditAction.DELEGATION_ISSUED)
    assert (issued.detail["proof"], issued.detail["subject"]) == ("id_jag:grants", "user-1")
    assert token not in str(await api.records())


async def test_id_jag_7_2_the_metadata_names_the_profile_and_its_grant(api: Api):
    document = (await api.get("/.well-known/oauth-authorization-server")).json()
    assert document["authorization_grant_profiles_supported"] == [PROFILE]
    assert JWT_BEARER in document["grant_types_supported"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"aud": "https://elsewhere.example"}, "aud"),
        ({"aud": [PUBLIC_URL, "https://elsewhere.example"]}, "aud"),
        ({"aud": PUBLIC_URL + "/"}, "aud"),
        ({"aud": None}, "aud"),
        ({"client_id": "app_0000000000000000000000"}, "client_id"),
        ({"client_id": None}, "client_id"),
        ({"iss": "https://unknown.example"}, "rule"),
        ({"sub": ""}, "no person"),
        ({"sub": "*"}, "no person"),
        ({"jti": None}, "jti"),
        ({"jti": "x" * 256}, "jti"),
        ({"exp": 1}, "expired"),
        ({"exp": None}, "exp is missing"),
        ({"exp": 2**40}, "within an hour"),
        ({"iat": None}, "issued"),
        ({"iat": 2**40}, "future"),
        ({"act": {"sub": "other"}}, "act"),
        ({"cnf": {"jkt": "x"}}, "cnf"),
        ({"tenant": "acme"}, "tenant"),
        ({"authorization_details": []}, "authorization_details"),
        ({"resource": 7}, "resource"),
        ({"resource": []}, "resource"),
        ({"scope": ["read"]}, "scope"),
    ],
)
async def test_id_jag_3_1_a_claim_that_is_wrong(granting: Granting, changes: dict[str, Any], why: str):
    error, said = await granting.refused(granting.jag(**changes))
    assert error == "invalid_grant"
    assert why in said


async def test_rfc8725_a_wrong_type_signature_or_algorithm(granting: Granting):
    for header in ({"typ": "JWT"}, {"typ": "at+jwt"}, {"typ": "client-authentication+jwt"}, {"crit": ["x"]}):
        assert (await granting.refused(granting.jag(header=header)))[0] == "invalid_grant"
    shared = granting.jag(key=b"public", header={"alg": "HS256"})
    unsigned = granting.jag(key=b"", header={"alg": "none"})
    forged = granting.jag(key=new_key("one"))
    for jag in (shared, unsigned, forged, "a.b.c", granting.jag() + "x", "x" * 20_000):
        assert (await granting.refused(jag))[0] == "invalid_grant"
    assert await granting.api.records(AuditAction.DELEGATION_ISSUED) == []


async def test_id_jag_a_jti_counts_once(granting: Granting):
    jag = granting.jag()
    assert (await granting.ask(jag)).status_code == 200
    assert await granting.refused(jag) == ("invalid_grant", "It was used before: its jti counts once.")


async def test_id_jag_8_1_the_client_authenticates(api: Api, granting: Granting, admin: str):
    jag = granting.jag()
    bare = {"grant_type": JWT_BEARER, "assertion": jag}
    for more in ({}, {"client_id": granting.front.id}, {"actor_token": granting.some.keys["front"]}):
        answer = await api.client.post("/oauth/token", data=bare | more)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), more
    back = await asserting_app(api, admin, "back")
    assert "client_id" in (await granting.refused(jag, back))[1]
    theirs = granting.jag(client_id=back.id)
    assert "lets this app act" in (await granting.refused(theirs, back))[1], (
        "it isn't among the rule's actors"
    )
    assert (await granting.ask(jag)).status_code == 200, "no refusal used it up"


async def test_id_jag_an_issuer_that_no_rule_enables_grants_nothing(some: Delegating, admin: str):
    """That its id tokens may be exchanged, and that it is trusted, says nothing of its grants."""
    granting = Granting(some, await asserting_app(some.api, admin, "front"))
    assert "No delegation rule" in (await granting.refused(granting.jag()))[1]
    await some.put("/v1/delegation-rules/grants", ENABLED)
    token = await granting.token()
    removed = await some.api.call("DELETE", "/v1/delegation-rules/grants", admin)
    assert removed.status_code == 204
    assert (await some.api.lease(token)).status_code == 403
    assert "No delegation rule" in (await granting.refused(granting.jag()))[1]


async def test_id_jag_an_identity_provider_of_another_tenant_grants_nothing(api: Api, granting: Granting):
    stranger = await api.app_with("stranger", Action.TOKEN, tenant=OTHER)
    assert stranger
    theirs = await api.app_named("front")
    async with api.worker.write() as tx:
        for rule in await tx.delegation_rules.all(theirs.tenant):
            await tx.delegation_rules.delete(rule)
        issuer = await tx.trusted_issuers.by_name(theirs.tenant, "staff")
        assert issuer is not None
        elsewhere = issuer.model_copy(update={"tenant": OTHER, "id": issuer.id[:-1] + "0", "revision": 0})
        await tx.trusted_issuers.put(elsewhere, expected=None)
    assert "No delegation rule" in (await granting.refused(granting.jag()))[1]


async def test_id_jag_a_token_is_no_wider_than_grant_and_permits(api: Api, granting: Granting):
    """A scope or resource beyond the grant's, a connection of another subject, a permit that denies."""
    crm = await api.integration()
    mine = await api.active(crm)
    other = await api.active(crm, "at-2", subject="user-2")
    jag = granting.jag(scope="read_user", resource=resource("integrations", "crm"))
    assert (await granting.refused(jag, scope="read_user write"))[0] == "invalid_scope"
    assert (await granting.refused(jag, resource=resource("integrations", "mail")))[0] == "invalid_target"
    assert (await granting.ask(jag)).status_code == 200
    foreign = granting.jag(resource=resource("connections", other.id))
    assert (await granting.refused(foreign))[0] == "invalid_target"
    assert (await granting.refused(granting.jag(resource="https://elsewhere.example/mcp")))[
        0
    ] == "invalid_target"
    nothing = await granting.token(scope="")
    assert (await api.lease(nothing)).status_code == 403
    gateway = api.parts.settings.gateway_public_url
    called = await granting.token(resource=f"{gateway}/mcp/{mine.id}")
    assert (await api.lease(called)).status_code in (403, 404), "for calls through the gateway alone"
    token = await granting.token()
    denied = {"integration": "*", "subjects": ["user-1"], "effect": "deny", "actions": ["token"]}
    await granting.some.put("/v1/apps/front/permits/no", denied)
    assert (await api.lease(token)).status_code in (403, 404)


async def test_id_jag_is_no_identity_of_a_workload_and_no_subject_token(granting: Granting):
    jag = granting.jag()
    assert (await granting.some.refused(jag))[0] == "invalid_request"
    answer = await granting.front.ask(jag)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert (await granting.refused(granting.some.id_token()))[0] == "invalid_grant"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"audience": "https://elsewhere.example"}, "audience"),
        ({"actors": [], "may_act": True}, "actors"),
        ({"clients": {"web": "front"}}, "actors"),
    ],
)
async def test_a_rule_for_grants_says_to_which_apps(some: Delegating, changes: dict[str, Any], field: str):
    answer = await some.api.call("PUT", "/v1/delegation-rules/grants", some.admin, json=ENABLED | changes)
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert RULE["issuer"] == ENABLED["issuer"]
