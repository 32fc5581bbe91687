"""Token exchange (RFC 8693) as an attacker sends it: nothing is wider, longer, or for others."""

from typing import Any

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import OTHER, Api
from tests.fakes.assertions import JWT_BEARER, asserting_app
from tests.fakes.providers.workload_issuer import new_key
from tests.security.delegation.delegating import (
    ACCESS_TOKEN,
    CLIENT,
    LOGIN,
    RULE,
    Delegating,
    id_of,
    resource,
)


async def test_rfc8693_a_persons_token_buys_one_that_leases_that_persons_connections(
    api: Api, some: Delegating
):
    crm = await api.integration()
    await api.active(crm)
    await api.active(crm, "at-2", subject="user-2")
    answer = await some.ask(some.id_token(jti="one"), scope="read_user")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    body = answer.json()
    token = body.pop("access_token")
    assert 3590 < body.pop("expires_in") <= 3600
    assert body == {
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "scope": "read_user",
        "delegation_id": id_of(token),
        "session_id": id_of(token),
    }
    for _ in range(2):  # the second from memory
        assert (await api.lease(token)).json()["access_token"] == "at-1"
    assert (await api.lease(token, subject="user-2")).json()["code"] == "not_found"
    assert (await api.lease(some.keys["front"], subject="user-2")).status_code == 200
    records = await api.records(AuditAction.LEASE_ISSUED)
    leased = next(it for it in records if "acts_for" in it.detail)
    acts_for = {"subject": "user-1", "delegation": id_of(token), "session": id_of(token)}
    assert leased.detail["acts_for"] == {**acts_for, "chain": ["app:front"]}
    assert token not in str(await api.records())
    assert (await api.get("/v1/connections", token)).json()["code"] == "not_permitted"
    assert (await api.post("/v1/apps/front/keys", token)).json()["code"] == "not_permitted"


async def test_rfc8693_4_1_act_nests_and_only_the_outermost_leases(api: Api, some: Delegating, admin: str):
    await api.active(await api.integration())
    root = await some.token()
    child = await some.handed(root, "back")
    assert (await api.lease(child)).status_code == 200
    shown = (await api.get(f"/v1/delegations/{id_of(child)}", admin)).json()
    assert shown["act"] == {"sub": "app:back", "act": {"sub": "app:front", "act": {"sub": "app:front"}}}
    assert (shown["app"], shown["subject"], shown["depth"]) == ("back", "user-1", 3)
    (leased,) = await api.records(AuditAction.LEASE_ISSUED)
    assert leased.context.by == "app:back"
    assert leased.detail["acts_for"]["chain"] == ["app:front", "app:front", "app:back"]


async def test_rfc8693_4_4_a_token_for_another_app_is_good_for_that_exchange_alone(
    api: Api, some: Delegating
):
    await api.active(await api.integration())
    handed = await some.token(await some.token(), may_act="back")
    assert (await api.lease(handed)).json()["code"] == "unauthenticated"
    some.keys["eve"] = await api.app_with("eve", Action.TOKEN)
    assert "another app" in (await some.refused(handed, "eve"))[1]
    assert "another app" in (await some.refused(handed, "front"))[1]
    assert (await api.lease(await some.token(handed, "back"))).status_code == 200


CRM, HR = (resource("integrations", name) for name in ("crm", "hr"))
WIDER: list[tuple[dict[str, str], dict[str, str], str]] = [
    ({"scope": "read"}, {"scope": "read write"}, "invalid_scope"),
    ({"resource": CRM}, {"resource": HR}, "invalid_target"),
    ({"resource": CRM}, {"resource": "{hr}"}, "invalid_target"),
    ({"resource": "{crm}"}, {"resource": CRM}, "invalid_target"),
    ({"resource": "{crm}"}, {"resource": "{hr}"}, "invalid_target"),
    ({}, {"resource": "{others}"}, "invalid_target"),
    ({}, {"audience": "https://elsewhere.example"}, "invalid_target"),
    ({}, {"resource": "https://elsewhere.example/v1/connections/x"}, "invalid_target"),
    ({}, {"resource": "https://evergrant.test.evil.example"}, "invalid_target"),
    ({}, {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "invalid_request"),
    ({}, {"expires_in": "-1"}, "invalid_request"),
    ({}, {"may_act": "front"}, "invalid_request"),
    ({}, {"scope": 'read "all"'}, "invalid_scope"),
]


async def test_escalation_nothing_wider_than_the_parent_is_issued(api: Api, some: Delegating):
    crm, hr = await api.integration(), await api.integration("hr")
    made = {"crm": await api.active(crm), "hr": await api.active(hr)}
    made["others"] = await api.active(crm, "at-2", subject="user-2")
    urls = {name: resource("connections", it.id) for name, it in made.items()}
    for first, then, error in WIDER:
        parent = await some.token(**{name: value.format_map(urls) for name, value in first.items()})
        asked = {name: value.format_map(urls) for name, value in then.items()}
        assert (await some.refused(parent, **asked))[0] == error, (first, then)


async def test_escalation_a_child_that_asks_for_nothing_has_what_its_parent_has(api: Api, some: Delegating):
    crm, hr = await api.integration(), await api.integration("hr")
    connection = await api.active(crm, scopes=("read", "write"))
    await api.active(hr)
    parent = await some.token(scope="read", resource=resource("connections", connection.id))
    for token in (parent, await some.token(parent)):
        assert (await api.lease(token, integration="hr")).json()["code"] == "not_found"
        refused = (await api.lease(token)).json()
        assert (refused["code"], refused["scopes"]) == ("scope_not_permitted", "write")


async def test_escalation_no_life_is_longer_than_the_parents_or_the_persons_tokens(
    api: Api, some: Delegating
):
    await api.active(await api.integration())
    answer = await some.ask(some.id_token(), expires_in="7200")
    assert 3590 < answer.json()["expires_in"] <= 3600
    short = await some.token(answer.json()["access_token"], expires_in="60")
    child = await some.ask(short, expires_in="7200")
    assert child.json()["expires_in"] == 60
    assert (await api.lease(child.json()["access_token"])).status_code == 200
    api.clock.advance(60)
    for token in (short, child.json()["access_token"]):
        assert (await api.lease(token)).json()["code"] == "delegation_ended"
    far = int(api.clock.now().timestamp()) + 10**9
    assert (await some.ask(some.id_token(exp=far))).json()["expires_in"] == 12 * 3600


async def test_escalation_each_app_of_the_chain_needs_a_permit(api: Api, some: Delegating, admin: str):
    """What `back` may do is no way around what `front` may, nor the other way round."""
    await api.active(await api.integration())
    child = await some.handed(await some.token(), "back")
    assert (await api.lease(child)).status_code == 200
    for name in ("front", "back"):
        path = f"/v1/apps/{name}/permits/no"
        deny = {"integration": "crm", "actions": ["token"], "effect": "deny"}
        await some.put(path, deny)
        assert (await api.lease(child)).json()["code"] == "not_found"
        assert (await api.call("DELETE", path, admin)).status_code == 204
    assert (await api.lease(child)).status_code == 200


async def test_an_explanation_says_who_acts_for_whom_and_who_says_no(api: Api, some: Delegating, admin: str):
    narrowing = await api.integration(provider="auth0")
    connection = await api.active(narrowing, scopes=("read", "write"))
    child = await some.handed(await some.token(scope="read"), "back")
    path = f"/v1/delegations/{id_of(child)}/explain"
    asked = {"connection": connection.id}
    found = (await api.get(path, admin, params=asked)).json()
    assert [(it["app"], it["allowed"], it["reason"]) for it in found["chain"]] == [
        ("front", False, "scope_above_ceiling"),
        ("front", False, "scope_above_ceiling"),
        ("back", False, "scope_above_ceiling"),
    ]
    assert (found["subject"], found["allowed"], found["stopped_by"]) == ("user-1", False, [])
    narrow = {**asked, "scopes": "read"}
    assert (await api.get(path, some.keys["back"], params=narrow)).json()["allowed"] is True
    await some.put("/v1/apps/front", {"disabled": True})
    ended = (await api.get(path, admin, params=narrow)).json()
    assert (ended["allowed"], ended["chain"]) == (False, [])
    assert [it["code"] for it in ended["stopped_by"]] == ["delegation_ended"]


async def test_escalation_a_tree_has_an_end(some: Delegating):
    token = await some.token()
    for _ in range(4):
        token = await some.token(token)
    assert "last of 5" in (await some.refused(token))[1]


OTHERS: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://elsewhere.example"},
    "the issuer with a slash": {"iss": f"{LOGIN}/"},
    "another client's": {"aud": "another-client"},
    "two clients'": {"aud": [CLIENT, "another-client"]},
    "without an audience": {"aud": None},
    "ended": {"exp": 1},
    "without an end": {"exp": None},
    "not yet": {"nbf": 2**40},
    "of nobody": {"sub": None},
    "of everybody": {"sub": "*"},
    "of a list": {"sub": ["user-1"]},
    "of a text that no row holds": {"sub": "a\0b"},
    "of an actor already": {"act": {"sub": "app:front"}},
    "for another actor": {"may_act": {"iss": "https://evergrant.test", "sub": "app_x"}},
    "a logout token": {"events": {}},
    "a jti that isn't text": {"jti": 7},
}


async def test_confused_issuer_only_the_rules_own_tokens_count(some: Delegating):
    for name, changes in OTHERS.items():
        assert (await some.refused(some.id_token(**changes)))[0] == "invalid_request", name


HEADERS: list[dict[str, Any]] = [
    {"typ": "logout+jwt"},
    {"typ": "at+jwt"},
    {"typ": "oauth-id-jag+jwt"},
    {"kid": None},
    {"crit": ["kid"]},
]


async def test_a_persons_token_has_an_id_tokens_header(some: Delegating):
    unsigned = "eyJhbGciOiJub25lIn0." + some.id_token().split(".")[1] + "."
    for token in (unsigned, *(some.id_token(header=it) for it in HEADERS)):
        assert (await some.refused(token))[0] == "invalid_request"


async def test_a_token_that_another_key_has_signed_is_refused(some: Delegating):
    assert "signature" in (await some.refused(some.id_token(key=new_key("one"))))[1]


async def test_a_persons_token_with_a_jti_counts_once_for_any_app(some: Delegating, admin: str):
    await some.put("/v1/delegation-rules/staff", {**RULE, "actors": ["front", "back"]})
    token = some.id_token(jti="once")
    await some.token(token)
    for app in ("front", "back"):
        assert "counts once" in (await some.refused(token, app))[1]
    await some.token(some.id_token(jti="twice"))


async def test_a_trusted_issuer_is_no_consent(api: Api, some: Delegating, admin: str):
    """Another app, a rule without actors, and an issuer without a rule."""
    assert "lets this app act" in (await some.refused(some.id_token(), "back"))[1]
    answer = await api.call("PUT", "/v1/delegation-rules/open", admin, json={**RULE, "actors": []})
    assert answer.json()["code"] == "invalid_request"
    await api.call("DELETE", "/v1/delegation-rules/staff", admin)
    assert "No delegation rule" in (await some.refused(some.id_token()))[1]


async def test_rfc8693_4_4_may_act_of_the_person_names_the_actor(api: Api, some: Delegating):
    await some.put("/v1/delegation-rules/staff", {**RULE, "actors": [], "may_act": True})
    front = (await api.app_named("front")).id
    ours = {"iss": "https://evergrant.test", "sub": front}
    await some.token(some.id_token(may_act=ours))
    for other in ({"sub": front}, {**ours, "iss": LOGIN}, {**ours, "sub": "front"}, "front", None):
        assert (await some.refused(some.id_token(may_act=other)))[0] == "invalid_request"
    assert (await some.refused(some.id_token(may_act=ours), "back"))[0] == "invalid_request"


async def test_the_client_that_a_person_has_logged_in_to_is_bound_to_one_app(some: Delegating):
    rule = {**RULE, "actors": [], "clients": {CLIENT: "front", "a-cli": "back"}}
    await some.put("/v1/delegation-rules/staff", rule)
    await some.token(some.id_token())
    assert (await some.refused(some.id_token(), "back"))[0] == "invalid_request"
    assert (await some.refused(some.id_token(azp="a-cli")))[0] == "invalid_request"
    await some.token(some.id_token(azp="a-cli"), "back")


async def test_an_email_address_has_to_be_verified_and_of_a_listed_domain(api: Api, some: Delegating):
    await some.put("/v1/delegation-rules/staff", {**RULE, "claim": "email", "domains": ["Example.com"]})
    good = {"email": "ann@EXAMPLE.com", "email_verified": True}
    token = await some.token(some.id_token(**good))
    shown = await api.get(f"/v1/delegations/{id_of(token)}", some.keys["front"])
    assert shown.json()["subject"] == "ann@example.com"
    for other in ({"email_verified": "true"}, {"email": "ann@evil.example"}, {"email": "ann"}):
        assert (await some.refused(some.id_token(**{**good, **other})))[0] == "invalid_request"


async def test_a_token_of_another_tenant_is_unknown(api: Api, some: Delegating):
    some.keys["theirs"] = await api.app_with("front", Action.TOKEN, tenant=OTHER)
    assert "unknown" in (await some.refused(await some.token(), "theirs"))[1]
    assert "No delegation rule" in (await some.refused(some.id_token(), "theirs"))[1]


async def test_what_proves_no_actor(api: Api, some: Delegating, admin: str):
    delegation = await some.token()
    for actor in (delegation, some.id_token(), "evg_key_x", delegation[:-1] + "0"):
        assert (await some.refused(some.id_token(), actor))[0] == "invalid_request"
    nothing = {"actor_token": None, "actor_token_type": None}
    assert (await some.refused(some.id_token(), **nothing))[0] == "invalid_client"
    back = await asserting_app(api, admin, "back")
    both = {"client_assertion_type": JWT_BEARER, "client_assertion": back.assertion()}
    assert "of another app" in (await some.refused(some.id_token(), **both))[1]
    front = await asserting_app(api, admin, "front")
    alone = {**nothing, "client_assertion_type": JWT_BEARER}
    await some.token(some.id_token(), client_assertion=front.assertion(), **alone)
    await some.token(some.id_token(), await front.token())


async def test_a_parameter_stands_once_but_for_resources(api: Api, some: Delegating):
    crm = await api.integration()
    one, two = await api.active(crm), await api.active(await api.integration("hr"))
    urls = [resource("connections", it.id) for it in (one, two)]
    token = await some.token(resource=urls)
    for name in ("crm", "hr"):
        assert (await api.lease(token, integration=name)).status_code == 200
    assert (await some.refused(some.id_token(), scope=["a", "b"]))[0] == "invalid_request"
