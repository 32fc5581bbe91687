"""Client grants and signed client assertions, over real sockets."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey

from evergrant_server.core.connections.credentials import ClientKey
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from providers.client_auth import (
    client_assertion,
    generate_client_secret,
    import_signing_key,
    signing_algorithm,
)
from providers.definition.registry import Registry
from providers.requests.client_grants import (
    ACCESS_TOKEN_TYPE,
    ClientGrantInput,
    client_grant_request,
    read_exchanged_token,
)
from providers.requests.request_format import OAuthClient, ProviderAccess
from providers.responses.token_response import read_tokens
from tests.fakes.providers.client_grants import OtherGrants
from tests.fakes.providers.rsa_keys import rsa_key
from tests.unit.providers.requests.test_sender import Talk
from tests.unit.providers.samples import NOW, fails, reply_of, spec_like

KEY = ECKey.generate_key("P-256", {"kid": "ours-1"})
OURS = ClientKey(private=Secret(json.dumps(KEY.as_dict(private=True))))
PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
SHORT = generate_private_key(65537, 1024).private_bytes(*PKCS8).decode()
BOTH = ["client_credentials", "jwt_bearer", "token_exchange"]


def asked(**more: Any) -> ClientGrantInput:
    plain: dict[str, Any] = {
        "scopes": ("read", "write"),
        "target": TokenTarget(),
        "subject": "sam@example.com",
        "at": datetime.now(UTC),
    }
    return ClientGrantInput(**(plain | more))


def an_idp() -> OtherGrants:
    return OtherGrants(keys={"ours-1": KEY.as_dict(private=False)})


class Signing(Talk):
    """A client of the scripted server that may have a key."""

    def __init__(self, idp: OtherGrants, auth: str, key: ClientKey | None = OURS) -> None:
        super().__init__(idp, auth=auth)
        secret = Secret(idp.client_secret) if auth.startswith("client_secret") else None
        self.client = OAuthClient(idp.client_id, secret, auth, key, audience=idp.issuer)

    async def mint(
        self,
        flow: Flow,
        *,
        spec: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
        **more: Any,
    ):
        definition = spec_like(auth_modes=BOTH, **(spec or {}))
        access = self.access(definition, params)
        request = client_grant_request(access, flow, asked(**more))
        reply = await self.sender.send(access, request)
        return read_tokens(definition, reply, requested_scopes=("read",), refreshing=False)


@pytest.mark.parametrize(
    "auth", ["client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt"]
)
async def test_rfc6749_4_4_and_rfc8707_2_client_credentials_by_every_auth_method(auth: str) -> None:
    target = TokenTarget(resources=("https://a.example/", "https://b.example/"), audience="api")
    async with an_idp() as idp:
        tokens = await Signing(idp, auth).mint(Flow.CLIENT_CREDENTIALS, target=target)
        assert idp.active(tokens.access_token.reveal())
        assert tokens.refresh_token is None
        assert tokens.scopes == ("read", "write")
        assert idp.count("token", grant_type="client_credentials", scope="read write", audience="api") == 1
        assert idp.calls[-1].body.count(b"resource=https%3A%2F%2F") == 2


async def test_rfc7523_3_assertion_audience_id_and_lifetime() -> None:
    async with an_idp() as idp:
        talk = Signing(idp, "private_key_jwt")
        for _ in range(2):
            await talk.mint(Flow.CLIENT_CREDENTIALS)
        first, second = idp.assertions
        assert first["iss"] == first["sub"] == idp.client_id
        assert first["aud"] == idp.issuer  # one string, not an array
        assert 0 < first["exp"] - first["iat"] <= 60
        assert first["jti"] != second["jti"]
        (sent, _) = [call.params for call in idp.calls if call.endpoint == "token"]
        assert (sent["client_id"], "client_secret" in sent) == (idp.client_id, False)


async def test_rfc7523_2_1_jwt_bearer_grant() -> None:
    claims = {"iss": "{client_id}", "aud": "{token_endpoint}", "scope": "{scopes}"}
    spec = {
        "jwt_bearer": {"claims": claims, "claims_when": {"impersonate": {"sub": "{subject}"}}},
        "template_params": {"impersonate": {"enum": ["yes", "no"], "default": "no"}},
    }
    async with an_idp() as idp:
        talk = Signing(idp, "none")
        tokens = await talk.mint(Flow.JWT_BEARER, spec=spec)
        assert idp.active(tokens.access_token.reveal())
        await talk.mint(Flow.JWT_BEARER, spec=spec, params={"impersonate": "yes"}, subject="{client_id}")
        alone, impersonating = idp.assertions
    assert "sub" not in alone
    assert (alone["iss"], alone["aud"], alone["scope"]) == (idp.client_id, idp.url("token"), "read write")
    assert impersonating["sub"] == "{client_id}"  # a subject's name is no template


async def test_missing_key_not_sent() -> None:
    async with an_idp() as idp:
        for auth, flow in (("private_key_jwt", Flow.CLIENT_CREDENTIALS), ("none", Flow.JWT_BEARER)):
            with fails(ErrorCode.CLIENT_REJECTED, "no key"):
                await Signing(idp, auth, None).mint(flow)
        assert idp.calls == []


@pytest.mark.parametrize("flow", [Flow.AUTHORIZATION_CODE, Flow.DEVICE_CODE])
def test_flow_with_consent_is_no_client_grant(flow: Flow) -> None:
    spec = spec_like(auth_modes=[*BOTH, "authorization_code", "device_code"])
    endpoints, client = Endpoints(token_endpoint="x"), OAuthClient("c", None, "none")
    with pytest.raises(Failure, match="subject's consent"):
        client_grant_request(ProviderAccess(spec, endpoints, client), flow, asked())


@pytest.mark.parametrize(
    ("made", "algorithm"),
    [
        (rsa_key(), "RS256"),
        (rsa_key({"alg": "PS256"}), "PS256"),
        (ECKey.generate_key("P-256"), "ES256"),
        (ECKey.generate_key("P-384"), "ES384"),
        (OKPKey.generate_key("Ed25519"), "Ed25519"),
    ],
)
def test_signing_algorithm_of_key(made: Any, algorithm: str) -> None:
    as_jwk = ClientKey(private=Secret(json.dumps(made.as_dict(private=True))))
    assert signing_algorithm(import_signing_key(as_jwk)) == algorithm
    assert client_assertion("c", "https://idp.example", as_jwk, datetime.now(UTC)).count(".") == 2
    if "alg" not in made.as_dict():
        as_pem = ClientKey(private=Secret(made.as_pem(private=True).decode()), id="k")
        assert signing_algorithm(import_signing_key(as_pem)) == algorithm


@pytest.mark.filterwarnings("ignore:Key size")  # the library says so, too
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hush", "neither a PEM"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "neither a PEM"),
        (json.dumps(KEY.as_dict(private=False)), "not a private key"),
        (json.dumps(OctKey.generate_key().as_dict(private=True)), "not a private key"),
        (SHORT, "2048 bits"),
        (json.dumps(OKPKey.generate_key("X25519").as_dict(private=True)), "not used for signatures"),
        (json.dumps({**KEY.as_dict(private=True), "alg": "none"}), "not a signature algorithm"),
    ],
    ids=["text", "PEM", "public", "symmetric", "short", "agreement", "alg none"],  # keys differ each run
)
def test_unusable_key_refused_and_not_quoted(text: str, said: str) -> None:
    with fails(ErrorCode.CLIENT_REJECTED, said) as refused:
        import_signing_key(ClientKey(private=Secret(text)))
    assert text[:20] not in str(refused.value)


# --- token exchange (RFC 8693) ----------------------------------------------------------


async def test_rfc8693_2_1_token_exchange() -> None:
    async with an_idp() as idp:
        theirs = idp.grant()["access_token"]
        talk = Signing(idp, "client_secret_basic")
        target = TokenTarget(resources=("https://backend.example/api",), audience="backend")
        tokens = await talk.mint(Flow.TOKEN_EXCHANGE, subject_token=Secret(theirs), target=target)
        assert idp.active(tokens.access_token.reveal())
        (sent,) = [call.params for call in idp.calls]
    assert sent["subject_token"] == theirs
    assert sent["subject_token_type"] == sent["requested_token_type"] == ACCESS_TOKEN_TYPE
    assert (sent["audience"], sent["resource"]) == ("backend", "https://backend.example/api")
    with pytest.raises(Failure, match="no token to exchange"):
        await talk.mint(Flow.TOKEN_EXCHANGE)


GOOD = {"access_token": "at", "issued_token_type": ACCESS_TOKEN_TYPE, "token_type": "Bearer"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:jwt"}, None),
        ({"issued_token_type": None}, ErrorCode.REPLY_UNREADABLE),
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, ErrorCode.REPLY_UNREADABLE),
        ({"issued_token_type": [ACCESS_TOKEN_TYPE]}, ErrorCode.REPLY_UNREADABLE),
        ({"token_type": "N_A"}, ErrorCode.REPLY_UNREADABLE),  # section 2.2.1: not for use as a bearer token
        ({"error": "invalid_target"}, ErrorCode.CLIENT_REJECTED),
    ],
)
def test_rfc8693_2_2_1_issued_token_type(changes: dict[str, Any], code: ErrorCode | None) -> None:
    body = {name: it for name, it in (GOOD | changes).items() if it is not None}
    reply, spec = reply_of(body), spec_like(auth_modes=BOTH)
    if code is None:
        tokens = read_exchanged_token(spec, reply, requested_scopes=(), now=datetime.now(UTC))
        assert tokens.access_token.reveal() == "at"
        return
    with fails(code):
        read_exchanged_token(spec, reply, requested_scopes=(), now=datetime.now(UTC))


# --- a generated client secret, with the catalogue's definition of Apple ----------------------------

APPLE = Registry.load().get("apple")
EC = ECKey.generate_key("P-256")
APPLE_KEY = ClientKey(private=Secret(EC.as_pem(private=True).decode()), id="another id")
RSA_KEY = ClientKey(private=Secret(rsa_key().as_pem(private=True).decode()))
PARAMS = {"team_id": "A1B2C3D4E5", "key_id": "F6G7H8I9J0"}


def test_generated_secret_claims() -> None:
    APPLE.require_usable()
    secret = generate_client_secret(APPLE, "com.example.app", PARAMS, APPLE_KEY, NOW)
    token = jwt.decode(secret.reveal(), EC, algorithms=["ES256"])
    assert token.header == {"alg": "ES256", "typ": "JWT", "kid": "F6G7H8I9J0"}
    now = int(NOW.timestamp())
    assert token.claims == {
        "iss": "A1B2C3D4E5",
        "sub": "com.example.app",
        "aud": "https://appleid.apple.com",
        "iat": now,
        "exp": now + 86_400,
    }


@pytest.mark.parametrize(
    ("params", "key", "why"),
    [
        (PARAMS, None, "has no key"),
        ({"team_id": "A1B2C3D4E5"}, APPLE_KEY, "key_id is missing"),
        (PARAMS | {"team_id": "x"}, APPLE_KEY, "team_id must match"),
        (PARAMS, ClientKey(private=Secret("no key")), "can't be used"),
        (PARAMS, RSA_KEY, "can't sign with ES256"),
    ],
)
def test_missing_key_or_parameter_is_client_rejected(
    params: dict[str, str], key: ClientKey | None, why: str
) -> None:
    with fails(ErrorCode.CLIENT_REJECTED, why):
        generate_client_secret(APPLE, "com.example.app", params, key, NOW)
