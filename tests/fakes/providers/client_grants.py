"""The scripted authorization server with the grants that need no browser, and clients that sign.

    async with OtherGrants(keys={"kid-1": public_jwk}) as idp:
        idp.script(error("authorization_pending"), ok(), at="token")

On top of `ScriptedProvider`: `client_credentials` (RFC 6749 section 4.4), token exchange (RFC 8693) of
its own tokens, the JWT bearer grant (RFC 7523), and `private_key_jwt` and `client_secret_jwt` clients,
whose assertions must be for this issuer, fresh and never seen before. `idp.assertions` keeps what they
claimed. The device flow (RFC 8628) at `/device`: `idp.approve(user_code)` and `idp.deny(user_code)` are
what a person does elsewhere.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, OctKey

from tests.fakes.providers.scripted_provider import Call, Family, ScriptedProvider

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
CLIENT_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ALGORITHMS = ["RS256", "PS256", "ES256", "Ed25519", "HS256"]


@dataclass
class _Device:
    user_code: str
    scope: str
    said: str = ""


class OtherGrants(ScriptedProvider):
    """See the module's docstring. `keys` are public JWKs by their `kid`."""

    def __init__(self, *, keys: Mapping[str, Mapping[str, Any]] | None = None, **more: Any) -> None:
        super().__init__(**more)
        self.keys = dict(keys or {})
        self.assertions: list[dict[str, Any]] = []
        self.interval: int | None = 1  # seconds between polls; None: left to the client
        self.code_lives_s = 600
        self._seen: set[str] = set()
        self._devices: dict[str, _Device] = {}

    def _document(self) -> dict[str, Any]:
        grants = ["authorization_code", "refresh_token", "client_credentials", JWT_BEARER]
        methods = ["client_secret_basic", "client_secret_post", "private_key_jwt", "client_secret_jwt"]
        extra = {
            "grant_types_supported": [*grants, DEVICE_CODE],
            "token_endpoint_auth_methods_supported": methods,
            "device_authorization_endpoint": self.url("device"),
        }
        return {**super()._document(), **extra}

    def approve(self, user_code: str) -> None:
        self._device(user_code).said = "yes"

    def deny(self, user_code: str) -> None:
        self._device(user_code).said = "no"

    def _device(self, user_code: str) -> "_Device":
        return next(it for it in self._devices.values() if it.user_code == user_code)

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        if call.endpoint != "device":
            return super()._act(call)
        if not self._client_ok(call):
            return 401, {}, {"error": "invalid_client"}
        code = "dc-" + secrets.token_urlsafe(16)
        made = _Device(secrets.token_hex(4).upper(), call.params.get("scope", ""))
        self._devices[code] = made
        reply: dict[str, Any] = {
            "device_code": code,
            "user_code": made.user_code,
            "verification_uri": self.url("activate"),
            "expires_in": self.code_lives_s,
        }
        if self.interval is not None:
            reply["interval"] = self.interval
        return 200, {"Content-Type": "application/json"}, reply

    def _polled(self, code: str) -> tuple[int, dict[str, Any]]:
        device = self._devices.get(code)
        match device and device.said:
            case "":
                return 400, {"error": "authorization_pending"}
            case "no":
                return 400, {"error": "access_denied"}
            case "yes":
                assert device is not None
                device.said = "used"  # a device code works once
                return 200, self._new_family(device.scope)
            case _:
                return 400, {"error": "invalid_grant"}

    def _client_ok(self, call: Call) -> bool:
        if call.params.get("client_assertion_type") == CLIENT_ASSERTION:
            claims = self._verified(call.params.get("client_assertion", ""))
            return claims is not None and self._is_us(claims)
        if call.params.get("grant_type") == JWT_BEARER:
            return True  # the assertion says who it is
        return super()._client_ok(call)

    def _token(self, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        match params.get("grant_type"):
            case grant if grant == TOKEN_EXCHANGE:
                if not self.active(params.get("subject_token", "")):
                    return 400, {"error": "invalid_grant"}
                return 200, {**self._minted(params), "issued_token_type": ACCESS_TOKEN_TYPE}
            case grant if grant == DEVICE_CODE:
                return self._polled(params.get("device_code", ""))
            case "client_credentials":
                return 200, self._minted(params)
            case grant if grant == JWT_BEARER:
                claims = self._verified(params.get("assertion", ""))
                if claims is None or claims.get("aud") != self.url("token"):
                    return 400, {"error": "invalid_grant"}
                return 200, self._minted({**params, "scope": claims.get("scope", "")})
            case _:
                return super()._token(params)

    def _minted(self, params: Mapping[str, str]) -> dict[str, Any]:
        """A token without a refresh token (RFC 6749 section 4.4.3)."""
        family = Family(params.get("scope", ""), "")
        self.families.append(family)
        reply = self._issue(family)
        reply.pop("refresh_token", None)
        return reply

    def _verified(self, assertion: str) -> dict[str, Any] | None:
        """The claims of a fresh assertion that was never seen, signed with a key that is known."""
        try:
            token = jwt.decode(assertion, self._key_of, algorithms=_ALGORITHMS)
        except (JoseError, ValueError, KeyError):
            return None
        claims = dict(token.claims)
        self.assertions.append(claims)
        jti = claims.get("jti") or json.dumps(claims, sort_keys=True) + assertion
        if claims.get("exp", 0) <= time.time() or jti in self._seen:
            return None
        self._seen.add(jti)
        return claims

    def _key_of(self, signed: Any) -> Any:
        header = signed.headers()
        if header["alg"] == "HS256":
            return OctKey.import_key(self.client_secret)
        return JWKRegistry.import_key(dict(self.keys[header["kid"]]))

    def _is_us(self, claims: Mapping[str, Any]) -> bool:
        return claims["iss"] == claims["sub"] == self.client_id and claims["aud"] == self.issuer
