"""Proofs (RFC 9449) and signatures (RFC 5849) for apps: who may have one, for what, and what is on record."""

import hashlib
import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.credentials import OAUTH1, ProofKey, TokenPair
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from tests.fakes.api import TENANT, Api

ISSUER = "https://idp.example"
TARGET = "https://api.example/v1/me"


async def bound(api: Api) -> tuple[Connection, ProofKey]:
    """A connection whose token is bound to its key."""
    known = Endpoints(
        issuer=ISSUER,
        authorization_endpoint=f"{ISSUER}/authorize",
        token_endpoint=f"{ISSUER}/token",
        pushed_authorization_request_endpoint=f"{ISSUER}/par",
        mtls_aliases={"token_endpoint": "https://mtls.idp.example/token"},
    )
    integration = await api.integration(provider="generic", issuer=ISSUER, endpoints=known, dpop=True)
    connection = await api.active(integration, "at-1", token_type="DPoP")
    async with api.worker.write() as tx:
        key = await tx.proof_keys.get_or_create(TENANT, connection.id, api.clock.now())
    return connection, key


async def ask(api: Api, connection: Connection, key: str, **body: Any) -> Any:
    return await api.post(
        f"/v1/connections/{connection.id}/proof", key, {"htm": "GET", "htu": TARGET, **body}
    )


async def test_a_proof_is_for_one_request_with_the_token_of_now(api: Api):
    connection, key = await bound(api)
    app = await api.app_with("reader", Action.TOKEN)
    answer = await ask(api, connection, app, htu=f"{TARGET}?page=2", nonce="n-1")
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    said = answer.json()
    assert (said["token_type"], said["generation"], said["htu"]) == ("DPoP", 1, TARGET)
    token = jwt.decode(said["proof"], ECKey.import_key(dict(key.public)), algorithms=["ES256"])
    digest = urlsafe_b64encode(hashlib.sha256(b"at-1").digest()).rstrip(b"=").decode()
    told = {name: token.claims[name] for name in ("htm", "htu", "nonce", "ath")}
    assert told == {"htm": "GET", "htu": TARGET, "nonce": "n-1", "ath": digest}
    assert json.loads(key.private.reveal())["d"] not in answer.text
    (record,) = await api.records(AuditAction.DPOP_PROOF_ISSUED)
    assert record.object == connection.id
    assert (record.detail["generation"], record.detail["for"]) == (1, "GET https://api.example:443")


async def test_whoever_may_not_lease_gets_no_proof_and_leaves_no_record_of_one(api: Api):
    connection, _ = await bound(api)
    other = await api.app_with("other", Action.TOKEN, integration="elsewhere")
    connector = await api.app_with("connector", Action.CONNECT)
    assert (await ask(api, connection, other)).status_code == 404
    assert (await ask(api, connection, connector)).status_code == 403
    ceiling = await api.app_with("narrow", Action.TOKEN, ceiling=("other_scope",))
    assert (await ask(api, connection, ceiling)).json()["code"] == "scope_not_permitted"
    app = await api.app_with("reader", Action.TOKEN)
    bearer = await api.active(await api.integration("plain"))
    assert (await ask(api, bearer, app)).json()["code"] == "invalid_request", "it needs none"
    await api.change(connection, lambda it: it.revocation_requested("x", api.clock.now()))
    assert (await ask(api, connection, app)).json()["code"] == "connection_revoked"
    assert await api.records(AuditAction.DPOP_PROOF_ISSUED) == []


@pytest.mark.parametrize(
    "htu",
    [
        f"{ISSUER}/token",
        f"{ISSUER}/token/",
        f"{ISSUER}:443/token?x=y",
        "https://IDP.example/a/../token",
        f"{ISSUER}/%74oken",
        f"{ISSUER}//token",
        f"{ISSUER}/par",
        f"{ISSUER}/authorize",
        f"{ISSUER}./token",  # the same host, said with its root
        "https://idp%2eexample/token",  # and as browsers' URL rules unescape it
        f"{ISSUER}/%2574oken",
        "https://mtls.idp.example/token",
    ],
)
async def test_no_proof_is_made_for_the_authorization_server(api: Api, htu: str):
    """With it, a bound refresh token that was stolen elsewhere could be used."""
    connection, _ = await bound(api)
    app = await api.app_with("reader", Action.TOKEN)
    answer = await ask(api, connection, app, htu=htu)
    assert (answer.status_code, answer.json()["field"]) == (400, "htu")
    assert await api.records(AuditAction.DPOP_PROOF_ISSUED) == []
    assert (await ask(api, connection, app, htu=f"{ISSUER}/userinfo")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"htm": "get"},
        {"htm": "GET\n"},
        {"htm": ""},
        {"htu": "http://api.example/v1"},
        {"htu": "https://user@api.example/v1"},
        {"htu": "https://api.example/v1#x"},
        {"htu": "/v1"},
        {"htu": "https://api.example/a b"},
        {"nonce": 'a"b'},
        {"nonce": ""},
        {"ath": "x"},
    ],
)
async def test_what_is_no_request(api: Api, body: dict[str, str]):
    connection, _ = await bound(api)
    app = await api.app_with("reader", Action.TOKEN)
    answer = await ask(api, connection, app, **body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


# --- OAuth 1.0a ---------------------------------------------------------------------------------

FLICKR = "https://www.flickr.com/services/oauth"


async def signing(api: Api) -> Connection:
    integration = await api.integration(provider="flickr")
    pair = TokenPair(Secret("t-1"), Secret("s-1")).as_secret().reveal()
    return await api.active(integration, pair, token_type=OAUTH1)


async def sign(api: Api, connection: Connection, url: Any, **more: Any) -> Any:
    app = await api.app_with("reader", Action.TOKEN)
    body = {"method": "POST", "url": url, **more}
    return await api.post(f"/v1/connections/{connection.id}/signatures", app, body)


async def test_a_request_to_the_api_is_signed_and_on_record(api: Api):
    connection = await signing(api)
    answer = await sign(api, connection, "https://api.flickr.com/services/rest?method=flickr.test.login")
    assert answer.status_code == 200, answer.text
    assert "oauth_signature=" in answer.json()["headers"]["Authorization"]
    assert "s-1" not in answer.text


@pytest.mark.parametrize(
    "url",
    [
        f"{FLICKR}/access_token",
        f"{FLICKR}/request_token?x=y",
        "https://WWW.flickr.com:443/services//oauth/./access_token/",
        "https://www.flickr.com./services/oauth/%61ccess_token",
        "https://www%2eflickr.com/services/oauth/access_token",
    ],
)
async def test_no_step_of_an_authorization_is_signed(api: Api, url: str):
    """With our client's secret, an app could take part in somebody's consent (RFC 5849 section 2.3)."""
    connection = await signing(api)
    answer = await sign(api, connection, url)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert await api.records(AuditAction.LEASE_ISSUED) == []


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://[::1/x"},
        {"url": "https://h:99999/x"},
        {"url": "https://h:a/x"},
        {"form": [["a"]]},
        {"form": [["oauth_token", "x"]]},
        {"url": "https://api.flickr.com/x?%6fauth_token=1"},
        {"method": "get"},
        {"method": "G\u0130T"},
        {"url": 7},
        {"form": [["a", "\ud800"]]},
        {"url": "https://api.flickr.com/\ud800"},
    ],
)
async def test_what_is_no_request_to_sign_is_refused_and_not_on_record(api: Api, body: dict[str, Any]):
    connection = await signing(api)
    answer = await sign(api, connection, **{"url": "https://api.flickr.com/x", **body})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert await api.records(AuditAction.LEASE_ISSUED) == []


@pytest.mark.parametrize("value", ["\0", "a" * 16_384, "\U0001f469\u200d\U0001f4bb", "&=%+"])
async def test_odd_values_are_signed(api: Api, value: str):
    connection = await signing(api)
    answer = await sign(api, connection, "https://api.flickr.com/x", form=[["a", value]])
    assert answer.status_code == 200, answer.text
