"""The authorization server of the MCP SDK with tokens in memory, on a free port, for end-to-end tests.

Its issuer ends in a slash, it has the metadata of RFC 8414 alone, registers any client, and takes no Basic
request that doesn't repeat the client id in its body. Run as a program of its own by
`tests.fakes.providers.issuers`, which says what `POST /_test` does.
"""

import json
import secrets
import socket
import time

import uvicorn
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.server.auth.routes import create_auth_routes
from mcp.server.auth.settings import ClientRegistrationOptions, RevocationOptions
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

_LIVE_S = 3600
_BROKEN = "another-"


class InMemory(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """Consents at once. A refresh token works once, and its revocation ends the access token as well."""

    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.refresh: dict[str, RefreshToken] = {}
        self.access: dict[str, AccessToken] = {}

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self.clients[str(client_info.client_id)] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        code = AuthorizationCode(
            code=secrets.token_urlsafe(32),
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=str(client.client_id),
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self._issue(client, authorization_code.scopes)

    async def load_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: str
    ) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        self.end_grants()
        return self._issue(client, scopes)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.end_grants()

    def end_grants(self) -> None:
        """There is one at a time."""
        self.refresh.clear()
        self.access.clear()

    def _issue(self, client: OAuthClientInformationFull, scopes: list[str]) -> OAuthToken:
        access, refresh, owner = secrets.token_urlsafe(32), secrets.token_urlsafe(32), str(client.client_id)
        until = int(time.time()) + _LIVE_S
        self.access[access] = AccessToken(token=access, client_id=owner, scopes=scopes, expires_at=until)
        self.refresh[refresh] = RefreshToken(token=refresh, client_id=owner, scopes=scopes)
        return OAuthToken(
            access_token=access, refresh_token=refresh, expires_in=_LIVE_S, scope=" ".join(scopes)
        )


def main() -> None:
    tokens = InMemory()

    async def control(request: Request) -> JSONResponse:
        asked = await request.json()
        if "secret_works" in asked:
            for client in tokens.clients.values():
                secret = str(client.client_secret).removeprefix(_BROKEN)
                client.client_secret = secret if asked["secret_works"] else f"{_BROKEN}{secret}"
        if asked.get("end_grants"):
            tokens.end_grants()
        return JSONResponse({"live": len(tokens.refresh)})

    listening = socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{listening.getsockname()[1]}"
    issuer = AnyHttpUrl(base)
    routes = create_auth_routes(
        tokens,
        issuer,
        client_registration_options=ClientRegistrationOptions(enabled=True),
        revocation_options=RevocationOptions(enabled=True),
    )
    app = Starlette(routes=[*routes, Route("/_test", control, methods=["POST"])])
    print(json.dumps({"issuer": str(issuer), "control": f"{base}/_test"}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
