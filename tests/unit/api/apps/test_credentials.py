"""Registered credentials of apps: what a key set may hold, who may register one, and what is recorded."""

from typing import Any

from joserfc import jwk

from evergrant_server.core.access import MOST_CREDENTIALS, Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api
from tests.fakes.assertions import asserting_app, new_key, public_set

PATH = "/v1/apps/sync/credentials/main"


def body(*keys: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"method": "private_key_jwt", "parameters": {"jwks": {"keys": list(keys)}}, **more}


def public(alg: str = "ES256", /, **more: Any) -> dict[str, Any]:
    return public_set(new_key(alg), alg=alg)["keys"][0] | more


def weak() -> dict[str, Any]:
    n = public("RS256")["n"]
    return {"kty": "RSA", "e": "AQAB", "alg": "RS256", "n": n[: len(n) // 2]}


P256 = new_key().as_dict(private=True)
REFUSED: dict[str, dict[str, Any]] = {
    "private": body(P256),
    "private, under a public one": body(public(), P256),
    "symmetric": body({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}),
    "a symmetric alg": body(public(alg="HS256")),
    "no alg": body({name: it for name, it in public().items() if name != "alg"}),
    "alg none": body(public() | {"alg": "none"}),
    "an alg of another curve": body(public("ES384") | {"alg": "ES256"}),
    "an alg of another type": body(public() | {"alg": "RS256"}),
    "a key of another type": body({"kty": "OKP", "crv": "X25519", "x": "A" * 43, "alg": "Ed25519"}),
    "encryption": body(public(use="enc")),
    "weak": body(weak()),
    "huge": body(public("RS256") | {"n": "A" * 1400}),
    "an unknown curve": body(public() | {"crv": "P-999"}),
    "off the curve": body(public() | {"y": "A" * 43}),
    "a number": body(public() | {"x": 7}),
    "half a character": body(public(kid="\ud800")),
    "no keys": body(),
    "many keys": body(*[public()] * 11),
    "one kid twice": body(public(kid="a"), public(kid="a")),
    "no object": {"method": "private_key_jwt", "parameters": {"jwks": []}},
    "no set": {"method": "private_key_jwt", "parameters": {}},
    "an address": {"method": "private_key_jwt", "parameters": {"jwks_uri": "https://x.example"}},
    "another method": {"method": "api_key", "parameters": {}},
    "no method": {"parameters": {}},
    "more": body(public(), disabled=True),
}


async def test_a_bad_key_set_is_refused_and_not_quoted(api: Api, admin: str):
    await api.app_with("sync")
    for name, bad in REFUSED.items():
        answer = await api.call("PUT", PATH, admin, json=bad)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), (name, answer.text)
        for secret in (P256["d"], "c2VjcmV0"):
            assert secret not in answer.text
    assert (await api.get(PATH, admin)).status_code == 404


async def test_only_public_members_are_kept_and_the_change_is_recorded(api: Api, admin: str):
    await api.app_with("sync")
    given = public(kid="one") | {"use": "sig", "x5c": ["AAAA"], "note": "mine"}
    put = await api.call("PUT", PATH, admin, json=body(given))
    assert put.status_code == 201
    kept = {name: given[name] for name in ("kty", "crv", "x", "y", "alg", "kid")}
    assert put.json()["parameters"] == {"jwks": {"keys": [kept]}}
    assert (await api.get(PATH, admin)).json() == put.json()
    assert (await api.call("PUT", PATH, admin, json=body(public("RS256")))).json()["revision"] == 2
    assert (await api.call("DELETE", PATH, admin)).status_code == 204
    assert (await api.call("DELETE", PATH, admin)).status_code == 404
    records = await api.records(of=put.json()["id"])
    assert sorted(it.action for it in records) == ["credential.deleted", "credential.put", "credential.put"]
    assert {it.detail["name"] for it in records} == {"main"}


async def test_an_app_has_a_limited_number_of_credentials(api: Api, admin: str):
    await api.app_with("sync")
    for number in range(MOST_CREDENTIALS):
        path = f"/v1/apps/sync/credentials/c{number}"
        assert (await api.call("PUT", path, admin, json=body(public()))).status_code == 201
    refused = await api.call("PUT", PATH, admin, json=body(public()))
    assert (refused.status_code, refused.json()["code"]) == (409, "already_exists")
    again = await api.call("PUT", "/v1/apps/sync/credentials/c0", admin, json=body(public()))
    assert again.status_code == 200


async def test_a_credential_needs_an_admin(api: Api, admin: str):
    key = await api.app_with("sync", Action.TOKEN, Action.CONNECT)
    for method in ("PUT", "GET", "DELETE"):
        answer = await api.call(method, PATH, key, json=body(public()))
        assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")
    assert (await api.call("PUT", PATH, admin, json=body(public()))).status_code == 201
    assert (await api.get("/v1/apps/sync/credentials", key)).status_code == 403


async def test_a_second_app_must_approve_a_credential(api: Api, admin: str):
    api.parts.settings.four_eyes = True
    await api.app_with("sync")
    other = await api.app_with("other", Action.ADMIN)
    given = body(public())
    waits = await api.call("PUT", PATH, admin, json=given)
    assert (waits.status_code, waits.json()["code"]) == (403, "approval_required")
    await api.post(f"/v1/approvals/{waits.json()['approval_id']}", other)
    changed = await api.call("PUT", PATH, admin, json=body(public()))
    assert changed.json()["code"] == "approval_required"
    assert (await api.call("PUT", PATH, admin, json=given)).status_code == 201
    (record,) = await api.records(AuditAction.CREDENTIAL_PUT)
    assert record.detail["approved_by"] == "app:other"


async def test_an_explanation_of_access_counts_a_credential_as_a_way_in(api: Api, admin: str):
    connection, _ = await api.active_for("sync", Action.TOKEN)
    (key,) = (await api.get("/v1/apps/sync/keys", admin)).json()["items"]
    await api.call("DELETE", f"/v1/apps/sync/keys/{key['id']}", admin)
    app = await asserting_app(api, admin, "sync")
    params = {"app": "sync", "connection": connection.id}
    found = (await api.get("/v1/access/explain", admin, params=params)).json()
    assert found["stopped_by"] == []
    assert (await api.lease(await app.token())).status_code == 200
    (row,) = [it for it in (await api.get("/v1/access", admin)).json()["items"] if it["app"] == "sync"]
    assert row["app_last_used_at"] is not None
    assert isinstance(app.key, jwk.ECKey)
