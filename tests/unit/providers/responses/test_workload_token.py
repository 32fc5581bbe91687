"""Signatures of workload tokens: what can't be one is refused before a key is looked for."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from joserfc.jwk import ECKey

from providers.responses.signing_keys import UnknownKey
from providers.responses.workload_token import LONGEST_TOKEN, WorkloadTokenRefused, read_workload_token
from tests.fakes.providers.rsa_keys import rsa_key
from tests.fakes.providers.workload_issuer import new_key, signed

KEY = new_key("one")
RSA = rsa_key({"kid": "rsa", "use": "sig"})
KEYS = [KEY.as_dict(private=False), RSA.as_dict(private=False)]
HEADER = {"alg": "ES256", "kid": "one", "typ": "JWT"}
UNREADABLE = (b"[1]", b'{"exp": Infinity}', b'{"sub": "1", "sub": "2"}', b'{"a":' * 500)
CLAIMS = {"iss": "https://issuer.example", "sub": "7"}


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def without(name: str) -> dict[str, Any]:
    return {it: value for it, value in HEADER.items() if it != name}


def test_a_token_of_a_published_key_is_read_and_verified() -> None:
    for key, header in (
        (KEY, HEADER),
        (RSA, {"alg": "PS256", "kid": "rsa"}),
        (KEY, HEADER | {"typ": "at+jwt"}),
        (KEY, HEADER | {"nonce": "n", "x5t": "t", "of-the-platform": {"a": 1}}),
    ):
        token = read_workload_token(signed(header, CLAIMS, key))
        token.verify(KEYS)
        assert token.claims == CLAIMS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b.c",
        "é.é.é",
        f"{part(HEADER)}.{part(CLAIMS)}",
        f"{part({'alg': 'none', 'kid': 'one'})}.{part(CLAIMS)}.",
        *(f"{part(HEADER)}.{part(claims)}.c2ln" for claims in UNREADABLE),
        signed(HEADER | {"crit": ["b64"], "b64": True}, CLAIMS, KEY),
        signed(HEADER | {"typ": "client-authentication+jwt"}, CLAIMS, KEY),
        signed(HEADER | {"typ": "logout+jwt"}, CLAIMS, KEY),
        signed(without("kid"), CLAIMS, KEY),
        signed(HEADER, {"long": "x" * LONGEST_TOKEN}, KEY),
    ],
)
def test_what_is_no_workload_token_is_refused_unread(text: str) -> None:
    with pytest.raises(WorkloadTokenRefused):
        read_workload_token(text)


def test_a_signature_by_another_key_or_by_the_public_one_is_refused() -> None:
    with pytest.raises(WorkloadTokenRefused):
        read_workload_token(signed(HEADER, CLAIMS, ECKey.generate_key("P-256", {"kid": "one"}))).verify(KEYS)
    header, payload, signature = signed(HEADER, CLAIMS, KEY).split(".")
    with pytest.raises(WorkloadTokenRefused):
        read_workload_token(f"{header}.{part(CLAIMS | {'sub': '8'})}.{signature}").verify(KEYS)
    signing = f"{part(HEADER | {'alg': 'HS256'})}.{payload}"
    mac = hmac.new(KEY.as_pem(private=False), signing.encode(), hashlib.sha256).digest()
    with pytest.raises(WorkloadTokenRefused):
        read_workload_token(f"{signing}.{part(mac)}")
    with pytest.raises(UnknownKey):  # its issuer may have a new one
        read_workload_token(signed(HEADER | {"kid": "two"}, CLAIMS, KEY)).verify(KEYS)
    with pytest.raises(UnknownKey):
        read_workload_token(signed({"alg": "RS256", "kid": "one"}, CLAIMS, RSA)).verify(KEYS)
