"""Clients that prove an app's identity: they get access tokens by themselves, and renew them."""

import asyncio
import base64
import json
import traceback
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from evergrant import AsyncEvergrant, BadRequest, Evergrant
from evergrant.api.models import Credential
from evergrant.identity import PrivateKey, client_assertion
from evergrant.identity.private_key import new_private_key, public_jwk
from joserfc import jwk, jwt

from tests.fakes.patience import PATIENCE_S
from tests.unit.client.conftest import Caller, Command
from tests.unit.client.scripted_evergrant import (
    RecordedRequest,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    example,
    lease,
    problem,
)

APP = "app_0123456789abcdefghjkmn"
TOKEN, CONNECTION, LEASE = "POST /oauth/token", "GET /v1/connections/con_1", "POST /v1/lease"
FOUND = ScriptedResponse(200, connection())
REFUSED = problem(401, "BadRequest", "unauthenticated")


def granted(token: str = "evg_tok_canary", expires_in: float = 600) -> ScriptedResponse:
    return ScriptedResponse(200, {"access_token": token, "token_type": "Bearer", "expires_in": expires_in})


def form_of(request: RecordedRequest) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.raw.decode(), strict_parsing=True).items()}


def bearer_of(evergrant: ScriptedEvergrant, route: str) -> list[str]:
    sent = [it for it in evergrant.requests if f"{it.method} {it.path}" == route]
    return [it.headers["authorization"].removeprefix("Bearer ") for it in sent]


def claims_of(request: RecordedRequest, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of the assertion, which the key has signed."""
    read = jwt.decode(form_of(request)["client_assertion"], jwk.import_key(public_jwk(key)), ["ES256"])
    return read.header, read.claims


@pytest.fixture
def key() -> str:
    return new_private_key()


@pytest.fixture
def key_file(tmp_path: Path, key: str) -> Path:
    file = tmp_path / "app.jwk"
    file.write_text(key)
    return file


@pytest.fixture(params=["blocking", "asyncio"])
async def caller(
    request: pytest.FixtureRequest, evergrant: ScriptedEvergrant, key_file: Path
) -> AsyncIterator[Caller]:
    said: dict[str, Any] = {"identity": PrivateKey(APP, key_file), "deadline": timedelta(seconds=PATIENCE_S)}
    if request.param == "blocking":
        with Evergrant(evergrant.url, **said) as client:
            yield Caller(client)
    else:
        async with AsyncEvergrant(evergrant.url, **said) as client:
            yield Caller(client)


async def test_one_token_serves_many_calls_and_is_bought_with_a_signed_assertion(
    caller: Caller, evergrant: ScriptedEvergrant, key: str
):
    evergrant.script(TOKEN, granted())
    evergrant.script(CONNECTION, FOUND)
    await asyncio.gather(*(caller.call("connection", "con_1") for _ in range(10)))
    assert bearer_of(evergrant, CONNECTION) == ["evg_tok_canary"] * 10
    (asked,) = [it for it in evergrant.requests if it.path == "/oauth/token"]
    assert "authorization" not in asked.headers
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert form_of(asked)["grant_type"] == "client_credentials"
    header, said = claims_of(asked, key)
    assert header == {"alg": "ES256", "typ": "client-authentication+jwt"}
    assert (said["iss"], said["sub"], said["aud"]) == (APP, APP, evergrant.url)
    assert said["exp"] - said["iat"] == 60
    assert len(said["jti"]) >= 32


async def test_a_token_is_renewed_before_its_end_with_a_new_assertion(
    caller: Caller, evergrant: ScriptedEvergrant
):
    evergrant.script(TOKEN, granted("evg_tok_1", expires_in=0), granted("evg_tok_2"))
    evergrant.script(CONNECTION, FOUND)
    for _ in range(3):
        await caller.call("connection", "con_1")
    assert bearer_of(evergrant, CONNECTION) == ["evg_tok_1", "evg_tok_2", "evg_tok_2"]
    first, second = (form_of(it) for it in evergrant.requests if it.path == "/oauth/token")
    assert first["client_assertion"] != second["client_assertion"]


async def test_a_token_that_was_ended_early_is_replaced_once(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(TOKEN, granted("evg_tok_1"), granted("evg_tok_2"))
    evergrant.script(CONNECTION, REFUSED, FOUND, REFUSED)
    assert (await caller.call("connection", "con_1")).id == "con_1"
    assert bearer_of(evergrant, CONNECTION) == ["evg_tok_1", "evg_tok_2"]
    with pytest.raises(BadRequest, match="unauthenticated"):
        await caller.call("connection", "con_1")
    assert (evergrant.count(TOKEN), evergrant.count(CONNECTION)) == (3, 4)


async def test_a_refused_identity_is_one_plain_error(caller: Caller, evergrant: ScriptedEvergrant):
    said = {"error": "invalid_client", "error_description": "The assertion's jti was used before."}
    evergrant.script(TOKEN, ScriptedResponse(401, said))
    with pytest.raises(BadRequest) as refused:
        await caller.call("connection", "con_1")
    assert (refused.value.code, refused.value.status) == ("invalid_client", 401)
    assert "jti" in refused.value.detail
    assert (evergrant.count(TOKEN), evergrant.count(CONNECTION)) == (1, 0)


async def test_a_token_endpoint_that_is_away_is_asked_again(
    caller: Caller, evergrant: ScriptedEvergrant, no_pauses: None
):
    away = problem(503, "PlatformUnavailable", "store_unavailable")
    evergrant.script(TOKEN, ScriptedResponse(drop=True), away, granted())
    evergrant.script(CONNECTION, FOUND)
    await caller.call("connection", "con_1")
    assertions = [form_of(it)["client_assertion"] for it in evergrant.requests if it.path == "/oauth/token"]
    assert len(set(assertions)) == 3


@pytest.mark.parametrize("wrong", [{"access_token": "a\nb"}, {"access_token": None}, {"expires_in": "600"}])
async def test_a_mistyped_token_is_not_quoted(caller: Caller, evergrant: ScriptedEvergrant, wrong: dict):
    evergrant.script(TOKEN, ScriptedResponse(200, {"access_token": "evg_canary", "expires_in": 600} | wrong))
    with pytest.raises(Exception, match="protocol_error") as refused:
        await caller.call("connection", "con_1")
    assert "canary" not in str(refused.value)


def test_threads_share_one_request_for_a_token(evergrant: ScriptedEvergrant, key_file: Path):
    evergrant.script(TOKEN, granted())
    evergrant.script(CONNECTION, FOUND)
    with (
        Evergrant(evergrant.url, identity=PrivateKey(APP, key_file)) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda _: client.connection("con_1"), range(32)))
    assert evergrant.count(TOKEN) == 1


def test_a_function_is_an_identity_and_hears_the_issuer(evergrant: ScriptedEvergrant):
    evergrant.script(TOKEN, granted())
    evergrant.script(CONNECTION, FOUND)
    heard: list[str] = []

    def sign(issuer: str) -> Any:
        heard.append(issuer)
        return {**client_assertion("made.else.where"), "client_id": APP}

    with Evergrant(evergrant.url, identity=sign, issuer="https://public.example/") as client:
        client.connection("con_1")
    assert heard == ["https://public.example"]
    assert form_of(evergrant.requests[0])["client_assertion"] == "made.else.where"


KEYS = {
    "RS256 of a JWK": (
        lambda: {**jwk.RSAKey.generate_key(2048).as_dict(private=True), "alg": "RS256"},
        "RS256",
    ),
    "PS256 of an RSA key": (lambda: jwk.RSAKey.generate_key(2048), "PS256"),
    "ES384 by curve": (lambda: jwk.ECKey.generate_key("P-384"), "ES384"),
    "Ed25519": (lambda: jwk.OKPKey.generate_key("Ed25519"), "Ed25519"),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_in_pem_or_as_a_jwk_signs_with_its_algorithm(tmp_path: Path, name: str):
    make, algorithm = KEYS[name]
    key = make()
    text = json.dumps(key) if isinstance(key, dict) else key.as_pem(private=True).decode()
    public = public_jwk(text)
    assert (public["alg"], "d" in public) == (algorithm, False)
    made = PrivateKey(APP, text, key_id="k-1")("https://e.example")["client_assertion"]
    read = jwt.decode(made, jwk.import_key(public), [algorithm])
    assert (read.header["alg"], read.header["kid"]) == (algorithm, "k-1")


def test_a_replaced_key_file_is_used_from_the_next_token_on(key_file: Path):
    identity = PrivateKey(APP, key_file)
    key_file.write_text(new_private_key())
    made = identity("https://e.example")["client_assertion"]
    jwt.decode(made, jwk.import_key(public_jwk(key_file.read_text())), ["ES256"])


SECRET = json.loads(new_private_key())["d"]
BAD_KEYS = {
    "nothing": "",
    "text": "canary",
    "a public key": json.dumps(public_jwk(new_private_key())),
    "half a JWK": json.dumps({"kty": "EC", "crv": "P-256", "d": SECRET}),
    "half of JSON": '{"d": "' + SECRET,
    "a secret": json.dumps({"kty": "oct", "k": SECRET}),
    "for encryption": json.dumps(jwk.OKPKey.generate_key("X25519").as_dict(private=True)),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_that_can_not_sign_is_refused_at_once_and_not_quoted(name: str):
    with pytest.raises(BadRequest) as refused:
        PrivateKey(APP, BAD_KEYS[name])
    assert refused.value.code == "key_unusable"
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_settings_name_the_app_and_its_key(
    evergrant: ScriptedEvergrant, key_file: Path, key: str, monkeypatch: pytest.MonkeyPatch
):
    evergrant.script(TOKEN, granted())
    evergrant.script(CONNECTION, FOUND)
    monkeypatch.setenv("EVERGRANT_APP_ID", APP)
    with pytest.raises(BadRequest) as missing:
        Evergrant(evergrant.url)
    assert missing.value.code == "identity_incomplete"
    monkeypatch.setenv("EVERGRANT_PRIVATE_KEY_FILE", str(key_file))
    monkeypatch.setenv("EVERGRANT_ISSUER", "https://public.example")
    with Evergrant(evergrant.url) as client:
        client.connection("con_1")
        assert "canary" not in repr(client._tokens._token)
    _, said = claims_of(evergrant.requests[0], key)
    assert (said["iss"], said["aud"]) == (APP, "https://public.example")
    with Evergrant(evergrant.url, "evg_key_mine") as client:
        client.connection("con_1")
    assert bearer_of(evergrant, CONNECTION) == ["evg_tok_canary", "evg_key_mine"]
    with pytest.raises(BadRequest, match="credential_ambiguous"):
        Evergrant(evergrant.url, "evg_key_mine", identity=PrivateKey(APP, key_file))


def test_the_command_gets_a_token_of_its_own(
    command: Command, evergrant: ScriptedEvergrant, key_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("EVERGRANT_API_KEY")
    monkeypatch.setenv("EVERGRANT_APP_ID", APP)
    monkeypatch.setenv("EVERGRANT_PRIVATE_KEY_FILE", str(key_file))
    evergrant.script(TOKEN, granted())
    evergrant.script(LEASE, lease())
    assert command("token", "crm", "alice").status == 0
    assert bearer_of(evergrant, LEASE) == ["evg_tok_canary"]
    key_file.unlink()
    ended = command("token", "crm", "alice")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith("evergrant: key_unusable: ")


def test_the_command_makes_a_key_and_registers_its_public_half(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    file = tmp_path / "new.jwk"
    assert command("apps", "credentials", "new-key", str(file)).status == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert command("apps", "credentials", "new-key", str(file)).status == 1  # never overwritten
    registered = example(Credential, name="main", method="private_key_jwt", parameters={})
    evergrant.script("PUT /v1/apps/etl/credentials/main", ScriptedResponse(200, registered))
    put = ("apps", "credentials", "put", "etl", "main", "--key", str(file))
    assert command(*put).status == 0
    (sent,) = evergrant.requests
    public = public_jwk(file.read_text())
    assert sent.body == {"method": "private_key_jwt", "parameters": {"jwks": {"keys": [public]}}}
    assert "d" not in public
    file.write_text("canary")
    ended = command(*put)
    assert (ended.status, "key_unusable" in ended.err, "canary" in ended.err) == (1, True, False)


@pytest.mark.parametrize(
    ("subject", "kind"), [("system:serviceaccount:a:b", "jwt-bearer"), ("spiffe://a.example/b", "jwt-spiffe")]
)
def test_a_workloads_token_is_read_for_every_token_request(
    evergrant: ScriptedEvergrant, tmp_path: Path, subject: str, kind: str, monkeypatch: pytest.MonkeyPatch
):
    def token(secret: str) -> str:
        claims = base64.urlsafe_b64encode(json.dumps({"sub": subject, "jti": secret}).encode()).decode()
        return f"e30.{claims.rstrip('=')}.c2ln"

    evergrant.script(TOKEN, granted(expires_in=0), granted())
    evergrant.script(CONNECTION, FOUND)
    file = tmp_path / "token"
    monkeypatch.setenv("EVERGRANT_APP_ID", APP)
    monkeypatch.setenv("EVERGRANT_WORKLOAD_TOKEN_FILE", str(file))
    with Evergrant(evergrant.url) as client:
        with pytest.raises(BadRequest, match="workload_token_unusable"):
            client.connection("con_1")
        for secret in ("first", "second"):
            file.write_text(token(secret) + "\n")
            client.connection("con_1")
            assert form_of(evergrant.requests[-2]) == {
                "grant_type": "client_credentials",
                "client_id": APP,
                "client_assertion_type": f"urn:ietf:params:oauth:client-assertion-type:{kind}",
                "client_assertion": token(secret),
            }
