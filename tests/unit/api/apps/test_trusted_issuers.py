"""Trusted issuers: put by an admin, never turned into other ones, their keys asked for."""

from typing import Any

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.messages.jobs import FETCH_ISSUER_KEYS
from tests.fakes.api import Api

OIDC = {"kind": "oidc", "issuer": "https://issuer.example/realm"}
TRUST_DOMAIN = {
    "kind": "spiffe",
    "issuer": "spiffe://example.org",
    "jwks_uri": "https://spire.example/bundle",
}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "oidc"}, "issuer"),
        ({"kind": "other", "issuer": "https://issuer.example"}, "kind"),
        ({"kind": "oidc", "issuer": "http://issuer.example"}, "issuer"),
        ({"kind": "oidc", "issuer": "https://169.254.169.254"}, "issuer"),
        ({"kind": "oidc", "issuer": "https://issuer.example/?a=b"}, "issuer"),
        ({"kind": "oidc", "issuer": "https://user@issuer.example"}, "issuer"),
        ({"kind": "oidc", "issuer": "https://[::1"}, "issuer"),
        ({"kind": "oidc", "issuer": "https://token.actions.githubusercontent.com"}, "issuer"),
        (OIDC | {"jwks_uri": "file:///etc/passwd"}, "jwks_uri"),
        (OIDC | {"jwks_uri": "https://[::1]/keys"}, "jwks_uri"),
        ({"kind": "spiffe", "issuer": "spiffe://example.org"}, "jwks_uri"),
        (TRUST_DOMAIN | {"issuer": "https://example.org"}, "issuer"),
        (TRUST_DOMAIN | {"issuer": "spiffe://example.org/path"}, "issuer"),
        (OIDC | {"keys": []}, "keys"),
    ],
)
async def test_an_issuer_that_could_not_be_trusted_is_refused(
    api: Api, admin: str, body: dict[str, Any], field: str
):
    answer = await api.call("PUT", "/v1/issuers/theirs", admin, json=body)
    assert (answer.status_code, answer.json()["field" if "field" in answer.json() else "errors"]) == (
        400,
        field,
    )


async def test_a_new_issuer_has_its_keys_read_and_never_becomes_another(api: Api, admin: str):
    made = await api.call("PUT", "/v1/issuers/theirs", admin, json=OIDC)
    assert (made.status_code, made.json()["keys"], made.json()["keys_at"]) == (201, 0, None)
    (asked,) = [it for it in await api.outbox() if it.name == FETCH_ISSUER_KEYS.name]
    assert asked.payload["issuer_id"] == made.json()["id"]
    again = await api.call("PUT", "/v1/issuers/theirs", admin, json=OIDC)
    assert again.status_code == 200
    assert len(await api.outbox()) == 1  # its admin has repaired something, and has the keys read now
    moved = await api.call("PUT", "/v1/issuers/theirs", admin, json=OIDC | {"jwks_uri": "https://k.example/"})
    assert moved.status_code == 200
    assert len(await api.outbox()) == 1
    for other in (OIDC | {"issuer": "https://issuer.example/other"}, OIDC | {"kind": "kubernetes"}):
        refused = await api.call("PUT", "/v1/issuers/theirs", admin, json=other)
        assert (refused.status_code, refused.json()["code"]) == (409, "already_exists")
    same = await api.call("PUT", "/v1/issuers/again", admin, json=OIDC)
    assert same.status_code == 409
    await api.call("PUT", "/v1/issuers/domain", admin, json=TRUST_DOMAIN)
    listed = (await api.get("/v1/issuers?limit=1", admin)).json()
    rest = (await api.get(f"/v1/issuers?limit=1&cursor={listed['next_cursor']}", admin)).json()
    assert [it["name"] for it in (*listed["items"], *rest["items"])] == ["domain", "theirs"]
    assert (await api.call("DELETE", "/v1/issuers/theirs", admin)).status_code == 204
    assert (await api.get("/v1/issuers/theirs", admin)).status_code == 404
    actions = [it.action for it in await api.records()]
    assert actions.count(AuditAction.TRUSTED_ISSUER_PUT) == 4
    assert AuditAction.TRUSTED_ISSUER_DELETED in actions
