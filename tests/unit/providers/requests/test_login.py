"""OpenID Connect Core 1.0 section 3.1.3.7: the id token of a login, claim by claim."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey

from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from providers.requests.login import verified_claims
from providers.responses.signing_keys import UnknownKey
from tests.fakes.providers.rsa_keys import rsa_key
from tests.unit.providers.samples import fails

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
SECONDS = int(NOW.timestamp())
ISSUER, CLIENT, SECRET = "https://login.corp.example", "client-1", "s3cret-of-thirty-two-characters!"
EC = ECKey.generate_key("P-256", {"kid": "ec"})
RSA = rsa_key({"kid": "rsa"})
KEYS = [{**key.as_dict(private=False)} for key in (EC, RSA)]
GOOD = {"iss": ISSUER, "aud": CLIENT, "sub": "7", "exp": SECONDS + 60, "iat": SECONDS, "nonce": "n-1"}


def token(claims: Any = None, key: Any = EC, *, without: str = "", **header: Any) -> str:
    said = {name: it for name, it in (GOOD | (claims or {})).items() if name != without}
    protected = {"alg": "ES256", "kid": "ec", **header}
    registry = jws.JWSRegistry(algorithms=[protected["alg"]], strict_check_header=False)
    return jws.serialize_compact(protected, json.dumps(said), key, registry=registry)


def check(text: str, keys: Any = KEYS) -> dict[str, Any]:
    nonce = hash_of_nonce("n-1")
    return verified_claims(Secret(text), keys, issuer=ISSUER, client_id=CLIENT, nonce_hash=nonce, now=NOW)


@pytest.mark.parametrize(
    "text",
    [
        token(),
        token(key=RSA, alg="RS256", kid="rsa"),
        token(key=RSA, alg="PS256", kid="rsa"),
        token({"aud": [CLIENT]}),
        token({"aud": [CLIENT, "another"], "azp": CLIENT}),
        token({"exp": SECONDS - 59, "iat": SECONDS + 59}),
        token(private="of the issuer"),
    ],
    ids=["ES256", "RS256", "PS256", "audiences", "azp", "clocks", "RFC 7515 section 4"],
)
def test_accepted(text: str) -> None:
    assert check(text)["sub"] == "7"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"iss": ISSUER + "/"},
        {"iss": ISSUER.removeprefix("https://")},
        {"iss": None},
        {"aud": "another"},
        {"aud": [CLIENT, "another"]},
        {"aud": [CLIENT, "another"], "azp": "another"},
        {"azp": "another"},
        {"sub": ""},
        {"sub": 7},
        {"exp": SECONDS - 60},
        {"exp": True},
        {"exp": str(SECONDS + 60)},
        {"iat": SECONDS + 61},
        {"nonce": "n-2"},
        {"nonce": None},
    ],
    ids=str,
)
def test_refused_claims(claims: dict[str, Any]) -> None:
    with fails(ErrorCode.ID_TOKEN_REFUSED):
        check(token(claims))


@pytest.mark.parametrize("name", ["iss", "sub", "exp", "iat", "nonce"])
def test_missing_claims(name: str) -> None:
    with fails(ErrorCode.ID_TOKEN_REFUSED):
        check(token(without=name))


@pytest.mark.parametrize("text", [token({"aud": []}), token({"aud": ""}), token(without="aud")])
def test_an_empty_audience_is_the_admins(text: str) -> None:
    """Refused as well, and no further login would bring another one."""
    with fails(ErrorCode.CLIENT_REJECTED):
        check(text)


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def altered() -> str:
    head, _, signature = token().split(".")
    return f"{head}.{encoded(GOOD | {'sub': '8'})}.{signature}"


@pytest.mark.parametrize(
    "text",
    [
        f"{encoded({'alg': 'none'})}.{encoded(GOOD)}.",
        altered(),
        token(key=OctKey.import_key(SECRET), alg="HS256"),
        token(key=OctKey.import_key(str(KEYS[0]["x"])), alg="HS256", kid="ec"),
        token(key=ECKey.generate_key("P-256"), kid="ec"),
        "not.a-token",
        "a.b.c.d.e",
        "",
        "[" * 60_000,
    ],
    ids=[
        "alg none",
        "altered",
        "the client secret",
        "our public key",
        "key",
        "text",
        "encrypted",
        "",
        "deep",
    ],
)
def test_section_10_1_refused_signatures(text: str) -> None:
    with fails(ErrorCode.ID_TOKEN_REFUSED):
        check(text)


def test_a_key_that_is_not_in_the_set_may_be_a_new_one() -> None:
    for keys in ((), KEYS[1:]):
        with pytest.raises(UnknownKey):
            check(token(), keys)
