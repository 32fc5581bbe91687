"""Clients of the gateways, such as coding agents, with codes as the authorization endpoint makes them.

agent = await authorized_client(api, "agent")         # a public client that acts as this app
tokens = await agent.tokens("alice")                  # of a new authorization
again = await agent.refresh(tokens["refresh_token"])
"""

import base64
import hashlib
import secrets
from datetime import timedelta
from typing import Any

import httpx2

from evergrant_server.core.ids import AuthorizationCodeId, ConnectionId, OAuthClientId, new_id
from evergrant_server.core.oauth.authorizations import AuthorizationCode
from evergrant_server.core.oauth.clients import ClientAuthMethod, ClientKind, GatewayClient
from tests.fakes.api import TENANT, Api
from tests.fakes.assertions import JWT_BEARER, Key, public_set, signed

REDIRECT_URI = "http://127.0.0.1:1455/callback"
VERIFIER = "v" * 43


def challenge_of(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class AuthorizedClient:
    """A registered client and the app as which it acts. With a key it signs an assertion for each request."""

    def __init__(self, api: Api, client: GatewayClient, app: str, key: Key | None) -> None:
        self.api, self.client, self.app, self.key = api, client, app, key

    @property
    def resource(self) -> str:
        return f"{self.api.parts.settings.gateway_public_url}/mcp"

    async def code(
        self, subject: str = "alice", connection_id: ConnectionId | None = None, **more: Any
    ) -> str:
        """A code that a subject has just authorized; `more` changes its fields."""
        text, now = secrets.token_urlsafe(32), self.api.clock.now()
        app = await self.api.app_named(self.app)
        values: dict[str, Any] = {
            "tenant": TENANT,
            "id": AuthorizationCodeId(new_id("cod")),
            "client_id": self.client.client_id,
            "app_id": app.id,
            "subject": subject,
            "resource": self.resource if connection_id is None else f"{self.resource}/{connection_id}",
            "connection_id": connection_id,
            "scopes": ("mcp",),
            "code_hash": AuthorizationCode.hash_of(text),
            "redirect_uri": REDIRECT_URI,
            "challenge": challenge_of(VERIFIER),
            "created_at": now,
            "expires_at": now + timedelta(minutes=1),
            **more,
        }
        async with self.api.worker.write() as tx:
            await tx.authorization_codes.add(AuthorizationCode(**values))
        return text

    async def ask(self, path: str, **parameters: str | None) -> httpx2.Response:
        """Send a form; a parameter that is None is left out."""
        form: dict[str, str | None] = {"client_id": self.client.client_id, **self._proof(), **parameters}
        given = {name: value for name, value in form.items() if value is not None}
        return await self.api.client.post(path, data=given)

    async def exchange(self, code: str, **changes: str | None) -> httpx2.Response:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
        return await self.ask("/oauth/token", **{**form, "code_verifier": VERIFIER, **changes})

    async def refresh(self, refresh_token: str, **changes: str | None) -> httpx2.Response:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return await self.ask("/oauth/token", **{**form, **changes})

    async def tokens(
        self, subject: str = "alice", connection_id: ConnectionId | None = None, **more: Any
    ) -> dict[str, Any]:
        """The first tokens of a new authorization."""
        answer = await self.exchange(await self.code(subject, connection_id, **more))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def _proof(self) -> dict[str, str | None]:
        if self.key is None:
            return {}
        now = int(self.api.clock.now().timestamp())
        id, issuer = self.client.client_id, self.api.parts.settings.public_url
        claims = {"iss": id, "sub": id, "aud": issuer, "exp": now + 60, "jti": secrets.token_hex(16)}
        assertion = signed(self.key, {"alg": "ES256", "typ": "JWT"}, claims)
        return {"client_assertion_type": JWT_BEARER, "client_assertion": assertion}


async def authorized_client(api: Api, app: str, key: Key | None = None, **changes: Any) -> AuthorizedClient:
    """A client that registered itself; with a key one that proves it. `changes` are of its row."""
    id = OAuthClientId(new_id("cli"))
    values: dict[str, Any] = {
        "tenant": TENANT,
        "id": id,
        "client_id": id,
        "kind": ClientKind.REGISTERED,
        "name": "Coding agent",
        "redirect_uris": (REDIRECT_URI,),
        "created_at": api.clock.now(),
        **changes,
    }
    if key is not None:
        values |= {"auth_method": ClientAuthMethod.PRIVATE_KEY_JWT, "jwks": public_set(key)}
    client = GatewayClient(**values)
    async with api.worker.write() as tx:
        await tx.oauth_clients.add(client)
    return AuthorizedClient(api, client, app, key)
