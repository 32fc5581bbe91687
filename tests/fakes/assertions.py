"""Apps that prove their identity with a signed assertion, as a client library does it, or doesn't."""

import base64
import hmac
import json
import secrets
from typing import Any

import httpx2
from joserfc import jwk
from joserfc.jws import JWSRegistry

from tests.fakes.api import Api

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
TYPE = "client-authentication+jwt"
Key = jwk.ECKey | jwk.RSAKey | jwk.OKPKey


def new_key(alg: str = "ES256") -> Key:
    """A private key for an algorithm. It would sign with others too."""
    if alg.startswith(("RS", "PS")):
        return jwk.RSAKey.generate_key(2048)
    if alg.startswith("ES"):
        crv: Any = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[alg]
        return jwk.ECKey.generate_key(crv)
    return jwk.OKPKey.generate_key("Ed25519")


def public_set(*keys: Key, alg: str = "ES256") -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False, alg=alg) for key in keys]}


def signed(key: Key | bytes, header: dict[str, Any], claims: dict[str, Any] | bytes) -> str:
    """A JWT, however wrong. A key in bytes is a shared one (HS256); an empty one signs nothing."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    message = b".".join(_base64url(part) for part in (json.dumps(header).encode(), payload))
    if isinstance(key, bytes):
        signature = hmac.digest(key, message, "sha256") if key else b""
    else:
        signature = JWSRegistry.algorithms[header["alg"]].sign(message, key)
    return b".".join((message, _base64url(signature))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class AssertingApp:
    """An app with a registered key. `assertion` changes single members; None leaves one out."""

    def __init__(self, api: Api, app_id: str, key: Key, alg: str = "ES256") -> None:
        self.api, self.id, self.key, self.alg = api, app_id, key, alg

    def assertion(
        self, header: dict[str, Any] | None = None, key: Key | bytes | None = None, **claims: Any
    ) -> str:
        now = int(self.api.clock.now().timestamp())
        said: dict[str, Any] = {
            "iss": self.id,
            "sub": self.id,
            "aud": self.api.parts.settings.public_url,
            "iat": now,
            "exp": now + 60,
            "jti": secrets.token_hex(16),
            **claims,
        }
        top = {"alg": self.alg, "typ": TYPE, **(header or {})}
        return signed(
            self.key if key is None else key,
            {name: it for name, it in top.items() if it is not None},
            {name: it for name, it in said.items() if it is not None},
        )

    async def ask(self, assertion: str | None = None, api: Api | None = None, **more: Any) -> httpx2.Response:
        """Send a token request; `more` are parameters, None leaves one out."""
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": JWT_BEARER,
            "client_assertion": self.assertion() if assertion is None else assertion,
            **more,
        }
        given = {name: it for name, it in form.items() if it is not None}
        return await (api or self.api).client.post("/oauth/token", data=given)

    async def token(self) -> str:
        answer = await self.ask()
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]


async def asserting_app(api: Api, admin: str, name: str, alg: str = "ES256") -> AssertingApp:
    """Give an app that is there a credential named `main` with a new key."""
    key = new_key(alg)
    body = {"method": "private_key_jwt", "parameters": {"jwks": public_set(key, alg=alg)}}
    answer = await api.call("PUT", f"/v1/apps/{name}/credentials/main", admin, json=body)
    assert answer.status_code == 201, answer.text
    return AssertingApp(api, (await api.app_named(name)).id, key, alg)
