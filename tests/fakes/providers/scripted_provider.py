"""A real HTTP authorization server on loopback that does what a test's script says.

    async with ScriptedProvider() as idp:
        idp.script(ok(), status(503, {"Retry-After": "7"}), drop_after_commit(), html())
        assert idp.count("token", grant_type="refresh_token") == 1

It serves, below `idp.issuer`: RFC 8414 metadata, `/authorize` (consents by itself: redirects with
`code`, `state` and `iss`), `/token`, `/revoke` and `/introspect`. Its client is `idp.client_id` /
`idp.client_secret`, by Basic or in the body. PKCE S256 is demanded. Codes work once. Refresh tokens
work once and a second use kills the whole family (`rotation="strict"`, the default), or stay good
(`rotation="none"`).

Each request at an endpoint takes the next answer of that endpoint's script (`script(..., at="token")`
without more); with none left it answers `ok()`. The answers:
- `ok(**fields)`            acts, and answers as RFC 6749 says, with `fields` put over the reply
- without acting: `status(n, headers)` with an empty body, `error(name, n)` with a JSON error,
  `echo(name, n)` with one that quotes the secrets of the request,
  `html(n)` with a page, `raw(body, n, headers)` with these bytes; `drop()` closes the connection
- `drop_after_commit()`     acts, then closes the connection: the answer is lost
- `delay(event_or_seconds)` waits, then does `then` (default `ok()`)
- `hold_answer(event)`      acts at once, and answers when the event is set
- `drip(seconds)`           acts at once, and sends its answer a byte at a time over so many seconds

`idp.calls` has every request as it came; `await idp.until("token", 2)` returns when the second
token request has arrived. `idp.refreshes` counts rotations that the server really carried out.
"""

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote_plus, urlencode, urlsplit

from tests.fakes.certificates import LoopbackTls
from tests.fakes.providers.scripted_server import (  # noqa: F401  # for who scripts a provider
    Answer,
    Call,
    ScriptedServer,
    delay,
    drip,
    drop,
    drop_after_commit,
    echo,
    error,
    hold_answer,
    html,
    ok,
    raw,
    status,
)


@dataclass
class Family:
    """All tokens that grew from one consent."""

    scope: str
    refresh_token: str
    alive: bool = True
    used: set[str] = field(default_factory=set)
    access_tokens: dict[str, float] = field(default_factory=dict)  # token -> end, epoch seconds


class ScriptedProvider(ScriptedServer):
    """See the module's docstring."""

    def __init__(
        self,
        *,
        rotation: Literal["strict", "none"] = "strict",
        expires_in: int = 3600,
        path: str = "",
        metadata: Mapping[str, Any] | None = None,
        tls: LoopbackTls | None = None,
    ) -> None:
        super().__init__(path, tls)
        self.redirect_uris: list[str] = []  # of the client that registered itself
        self.client_id = "client-1"
        self.client_secret = "s3cret-" + secrets.token_hex(8)
        self.refreshes = 0
        self.families: list[Family] = []
        self.metadata = dict(metadata or {})  # put over the RFC 8414 document; None removes a field
        self.rotation = rotation
        self._expires_in = expires_in
        self._codes: dict[str, dict[str, str]] = {}

    def grant(self, scope: str = "read") -> dict[str, Any]:
        """A token reply as after a consent, for tests that begin with a grant."""
        return self._new_family(scope)

    def active(self, token: str) -> bool:
        now = time.time()
        return any(
            family.alive and (token == family.refresh_token or family.access_tokens.get(token, 0) > now)
            for family in self.families
        )

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        json_type = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        match call.endpoint:
            case "metadata":
                known = (f"/.well-known/oauth-authorization-server{self._path}",)
                if urlsplit(call.target).path not in known:
                    return 404, {}, None
                return 200, json_type, self._document()
            case "authorize":
                return 302, {"Location": self._authorize(call.params)}, None
            case "token" | "revoke" | "introspect" if not self._client_ok(call):
                return 401, json_type, {"error": "invalid_client"}
            case "token":
                code, data = self._token(call.params)
                return code, json_type, data
            case "revoke":
                self._revoke(call.params.get("token", ""))
                return 200, {}, None
            case "register":
                return 201, json_type, self._register(json.loads(call.body))
            case "introspect":
                return 200, json_type, {"active": self.active(call.params.get("token", ""))}
            case _:
                return 404, {}, None

    def _register(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """RFC 7591 section 3.2.1: from here on that client is the one it knows."""
        self.client_id = "client-" + secrets.token_hex(4)
        self.client_secret = "s3cret-" + secrets.token_hex(8)
        self.redirect_uris = metadata["redirect_uris"]
        return {
            **metadata,
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "client_secret_expires_at": 0,
            "registration_access_token": "rat-" + secrets.token_hex(8),
            "registration_client_uri": f"{self.issuer}/register/{self.client_id}",
        }

    def _document(self) -> dict[str, Any]:
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": self.url("authorize"),
            "token_endpoint": self.url("token"),
            "revocation_endpoint": self.url("revoke"),
            "introspection_endpoint": self.url("introspect"),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "authorization_response_iss_parameter_supported": True,
        }
        return {name: value for name, value in (document | self.metadata).items() if value is not None}

    def _authorize(self, params: dict[str, str]) -> str:
        back = {"state": params.get("state", ""), "iss": self.issuer}
        good = params.get("client_id") == self.client_id and params.get("code_challenge_method") == "S256"
        if good and params.get("response_type") == "code":
            code = secrets.token_urlsafe(16)
            self._codes[code] = params
            back["code"] = code
        else:
            back["error"] = "invalid_request"
        return f"{params.get('redirect_uri', '')}?{urlencode(back)}"

    def _client_ok(self, call: Call) -> bool:
        given = (call.params.get("client_id"), call.params.get("client_secret"))
        scheme, _, value = call.headers.get("authorization", "").partition(" ")
        if scheme == "Basic":
            name, _, secret = base64.b64decode(value).decode().partition(":")
            given = (unquote_plus(name), unquote_plus(secret))
        return given == (self.client_id, self.client_secret)

    def _token(self, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        match params.get("grant_type"):
            case "authorization_code":
                asked = self._codes.pop(params.get("code", ""), None)
                digest = hashlib.sha256(params.get("code_verifier", "").encode()).digest()
                challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
                if (
                    asked is None
                    or asked["code_challenge"] != challenge
                    or asked.get("redirect_uri") != params.get("redirect_uri")
                ):
                    return 400, {"error": "invalid_grant"}
                return 200, self._new_family(asked.get("scope", ""))
            case "refresh_token":
                code, data = self._refresh(params.get("refresh_token", ""))
                return code, data | {"scope": params["scope"]} if code == 200 and "scope" in params else data
            case _:
                return 400, {"error": "unsupported_grant_type"}

    def _refresh(self, token: str) -> tuple[int, dict[str, Any]]:
        for family in self.families:
            if token in family.used:
                family.alive = False  # reuse: another party has the newer one (RFC 9700 section 4.14.2)
            elif token == family.refresh_token and family.alive:
                self.refreshes += 1
                if self.rotation == "strict":
                    family.used.add(token)
                    family.refresh_token = "rt-" + secrets.token_urlsafe(16)
                return 200, self._issue(family)
        return 400, {"error": "invalid_grant"}

    def _new_family(self, scope: str) -> dict[str, Any]:
        family = Family(scope, "rt-" + secrets.token_urlsafe(16))
        self.families.append(family)
        return self._issue(family)

    def _issue(self, family: Family) -> dict[str, Any]:
        access = "at-" + secrets.token_urlsafe(16)
        family.access_tokens[access] = time.time() + self._expires_in
        reply = {
            "access_token": access,
            "token_type": "bearer",
            "expires_in": self._expires_in,
            "scope": family.scope,
        }
        if self.rotation == "strict" or len(family.access_tokens) == 1:
            reply["refresh_token"] = family.refresh_token
        return reply

    def _revoke(self, token: str) -> None:
        for family in self.families:
            if token == family.refresh_token or token in family.access_tokens or token in family.used:
                family.alive = False
