"""An OAuth 1.0a server whose signatures are oauthlib's to check: another implementation than ours.

    async with OAuth1Server(tls=loopback_tls(folder)) as idp:
        idp.consent(url)       # what the subject's browser does at the authorization page
        idp.api(...)           # is asked at `/api`, and says who the token belongs to

Temporary credentials at `/temporary`, the page at `/page`, token credentials at `/token`. Each
temporary token works once, each nonce once, and a verifier goes with its token alone.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from oauthlib.oauth1 import (
    AccessTokenEndpoint,
    AuthorizationEndpoint,
    RequestTokenEndpoint,
    RequestValidator,
    ResourceEndpoint,
)

from tests.fakes.providers.scripted_provider import Call, ScriptedProvider


class _Known(RequestValidator):
    """What the server knows of clients, temporary credentials and tokens."""

    client_key_length = request_token_length = access_token_length = verifier_length = (3, 100)
    nonce_length = (8, 100)
    allowed_signature_methods = ("HMAC-SHA1", "HMAC-SHA256", "PLAINTEXT")
    realms = ("Photos",)
    dummy_client = dummy_request_token = dummy_access_token = "nobody"

    def __init__(self, key: str, secret: str) -> None:
        super().__init__()
        self.key, self.secret = key, secret
        self.temporary: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, str] = {}
        self.nonces: set[tuple[str, str]] = set()

    def validate_client_key(self, client_key: str, request: Any) -> bool:
        return client_key == self.key

    def get_client_secret(self, client_key: str, request: Any) -> str:
        return self.secret

    def validate_timestamp_and_nonce(
        self, client_key: str, timestamp: str, nonce: str, *more: Any, **named: Any
    ) -> bool:
        seen = (timestamp, nonce) in self.nonces
        self.nonces.add((timestamp, nonce))
        return not seen

    def validate_redirect_uri(self, client_key: str, redirect_uri: str, request: Any) -> bool:
        return "/oauth/callback/" in redirect_uri

    def validate_realms(self, *_: Any, **__: Any) -> bool:
        return True

    validate_requested_realms = verify_realms = validate_realms

    def get_realms(self, *_: Any) -> list[str]:
        return []

    get_default_realms = get_realms

    def save_request_token(self, token: Mapping[str, str], request: Any) -> None:
        kept = {"secret": token["oauth_token_secret"], "callback": request.redirect_uri, "verifier": None}
        self.temporary[token["oauth_token"]] = kept

    def verify_request_token(self, token: str, request: Any) -> bool:
        return token in self.temporary

    def get_redirect_uri(self, token: str, request: Any) -> str:
        return self.temporary[token]["callback"]

    def save_verifier(self, token: str, verifier: Mapping[str, str], request: Any) -> None:
        self.temporary[token]["verifier"] = verifier["oauth_verifier"]

    def validate_request_token(self, client_key: str, token: str, request: Any) -> bool:
        return token in self.temporary

    def get_request_token_secret(self, client_key: str, token: str, request: Any) -> str:
        return self.temporary.get(token, {}).get("secret", "")

    def validate_verifier(self, client_key: str, token: str, verifier: str, request: Any) -> bool:
        return self.temporary[token]["verifier"] == verifier

    def invalidate_request_token(self, client_key: str, request_token: str, request: Any) -> None:
        del self.temporary[request_token]

    def save_access_token(self, token: Mapping[str, str], request: Any) -> None:
        self.tokens[token["oauth_token"]] = token["oauth_token_secret"]

    def validate_access_token(self, client_key: str, token: str, request: Any) -> bool:
        return token in self.tokens

    def get_access_token_secret(self, client_key: str, token: str, request: Any) -> str:
        return self.tokens.get(token, "")


class OAuth1Server(ScriptedProvider):
    """See the module's docstring."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.client_id = "consumer" + secrets.token_hex(6)
        self.known = _Known(self.client_id, self.client_secret)
        self.page = AuthorizationEndpoint(self.known)

    def consent(self, url: str) -> str:
        """The subject says yes at the page that `url` leads to; returns where the browser is sent back."""
        assert url.startswith(self.url("page") + "?")
        token = dict(parse_qsl(urlsplit(url).query))["oauth_token"]
        headers, _, status = self.page.create_authorization_response(url, "POST", f"oauth_token={token}", {})
        assert status == 302
        return headers["Location"]

    def _act(self, call: Call) -> tuple[int, dict[str, str], Any]:
        asked = (self.origin + call.target, call.method, call.body.decode(), self._headers(call))
        match call.endpoint:
            case "temporary":
                headers, body, code = RequestTokenEndpoint(self.known).create_request_token_response(*asked)
            case "token":
                endpoint = AccessTokenEndpoint(self.known)
                more = {"user_id": "38895958", "screen_name": "sam"}
                headers, body, code = endpoint.create_access_token_response(*asked, credentials=more)
            case "api":
                good, request = ResourceEndpoint(self.known).validate_protected_resource_request(*asked)
                said = {"token": request.resource_owner_key if good else None}
                return (200 if good else 401), {"Content-Type": "application/json"}, json.dumps(said).encode()
            case _:
                return super()._act(call)
        return code, dict(headers), (body or "").encode()

    @staticmethod
    def _headers(call: Call) -> dict[str, str]:
        return {
            "-".join(part.capitalize() for part in name.split("-")): value
            for name, value in call.headers.items()
        }


def denied(callback: str, token: str) -> str:
    """Where X sends the browser of a subject who declines."""
    return f"{callback}?{urlencode({'denied': token})}"
