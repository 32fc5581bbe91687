"""A generated client secret, with the catalogue's definition of Apple."""

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from evergrant_server.core.connections.credentials import ClientKey
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from providers.client_auth import generate_client_secret
from providers.definition.registry import Registry
from tests.unit.providers.samples import NOW, fails

APPLE = Registry.load().get("apple")
EC = ECKey.generate_key("P-256")
KEY = ClientKey(private=Secret(EC.as_pem(private=True).decode()), id="another id")
PARAMS = {"team_id": "A1B2C3D4E5", "key_id": "F6G7H8I9J0"}


def test_generated_secret_claims() -> None:
    APPLE.require_usable()
    secret = generate_client_secret(APPLE, "com.example.app", PARAMS, KEY, NOW)
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
        ({"team_id": "A1B2C3D4E5"}, KEY, "key_id is missing"),
        (PARAMS | {"team_id": "x"}, KEY, "team_id must match"),
        (PARAMS, ClientKey(private=Secret("no key")), "can't be used"),
        (
            PARAMS,
            ClientKey(private=Secret(RSAKey.generate_key(2048).as_pem(private=True).decode())),
            "can't sign with ES256",
        ),
    ],
)
def test_missing_key_or_parameter_is_client_rejected(
    params: dict[str, str], key: ClientKey | None, why: str
) -> None:
    with fails(ErrorCode.CLIENT_REJECTED, why):
        generate_client_secret(APPLE, "com.example.app", params, key, NOW)
