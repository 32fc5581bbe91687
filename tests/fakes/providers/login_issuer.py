"""An OpenID Connect issuer on loopback where `person` is logged in already, for the binding `oidc`."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, Key

from evergrant_server.core.integrations import Endpoints
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider


class LoginIssuer(ScriptedProvider):
    """`person` has the claims of who logs in, `told` what its UserInfo endpoint says; `bent` is put over
    the id token's claims (None: left out), and `sign` makes the token of them."""

    def __init__(self, now: Callable[[], datetime], **more: Any) -> None:
        super().__init__(**more)
        self._now = now
        self.key: Key = new_key("one")
        self.person: dict[str, Any] = {"sub": "user-1"}
        self.told: dict[str, Any] = {}
        self.bent: dict[str, Any] = {}
        self.sign: Callable[[dict[str, Any]], str] = self.signed

    def _document(self) -> dict[str, Any]:
        urls = {"jwks_uri": self.url("keys"), "userinfo_endpoint": self.url("userinfo")}
        return super()._document() | urls

    @property
    def endpoints(self) -> Endpoints:
        """As a worker pins them."""
        return Endpoints(
            issuer=self.issuer,
            authorization_endpoint=self.url("authorize"),
            token_endpoint=self.url("token"),
            jwks_uri=self.url("keys"),
            userinfo_endpoint=self.url("userinfo"),
            iss_in_callback=True,
        )

    def signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode({"alg": "ES256", "kid": self.key.kid}, claims, self.key)

    def claims(self, nonce: str | None) -> dict[str, Any]:
        """Of an id token for our client."""
        seconds = int(self._now().timestamp())
        made = {
            "iss": self.issuer,
            "aud": self.client_id,
            "iat": seconds,
            "exp": seconds + 300,
            "nonce": nonce,
        }
        return {name: it for name, it in (made | self.person | self.bent).items() if it is not None}

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        json_type = {"Content-Type": "application/json"}
        match call.endpoint:
            case "keys":
                return 200, json_type, {"keys": [self.key.as_dict(private=False)]}
            case "userinfo":
                return 200, json_type, self.told
            case _:
                return super()._act(call)

    def _token(self, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        asked = self._codes.get(params.get("code", ""), {})
        status, reply = super()._token(params)
        if status == 200 and "openid" in asked.get("scope", ""):
            reply["id_token"] = self.sign(self.claims(asked.get("nonce", "")))
        return status, reply


def new_key(kid: str) -> Key:
    return ECKey.generate_key("P-256", {"kid": kid, "alg": "ES256", "use": "sig"})
