"""Authlib's authorization server with one client, its rows in memory, on a free port, for end-to-end tests.

It asks at each refresh for the token's user: where there is none, the refusal is `invalid_request`. Whoever
`login_hint` names consents. Run as a program of its own by `tests.fakes.providers.real_servers`.
"""

import json
import os
import secrets
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIServer

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant
from authlib.oauth2.rfc7636 import CodeChallenge
from flask import Flask, request

from tests.fakes.providers.django_oidc_provider import Silent

CLIENT, SECRET = "evergrant", secrets.token_urlsafe(32)


@dataclass
class Row(TokenMixin):
    """A code, then a token."""

    user: str
    scope: str
    redirect_uri: str = ""
    code_challenge: str = ""
    code_challenge_method: str = "S256"
    revoked: bool = False

    def check_client(self, client: ClientMixin) -> bool:
        return True  # there is one

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


class Client(ClientMixin):
    redirect_uri = ""

    def get_client_id(self) -> str:
        return CLIENT

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == self.redirect_uri

    def check_client_secret(self, client_secret: str) -> bool:
        return secrets.compare_digest(client_secret, SECRET)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return True


client = Client()
codes: dict[str, Row] = {}
tokens: dict[str, Row] = {}  # by refresh token
disabled: set[str] = set()


class Codes(AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

    def save_authorization_code(self, code: str, request: Any) -> None:
        data = request.payload.data
        row = Row(request.user, request.payload.scope, request.payload.redirect_uri, data["code_challenge"])
        codes[code] = row

    def query_authorization_code(self, code: str, client: ClientMixin) -> Row | None:
        return codes.get(code)

    def delete_authorization_code(self, authorization_code: Row) -> None:
        authorization_code.revoked = True

    def authenticate_user(self, authorization_code: Row) -> str | None:
        return None if authorization_code.revoked else authorization_code.user


class Refreshes(RefreshTokenGrant):
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Row | None:
        row = tokens.get(refresh_token)
        return None if row is None or row.revoked else row

    def authenticate_user(self, refresh_token: Row) -> str | None:
        return None if refresh_token.user in disabled else refresh_token.user

    def revoke_old_credential(self, refresh_token: Row) -> None:
        refresh_token.revoked = True


def save(token: dict[str, Any], request: Any) -> None:
    tokens[token["refresh_token"]] = Row(request.user, token.get("scope", ""))


def application(issuer: str) -> Flask:
    app = Flask(__name__)
    app.config["OAUTH2_REFRESH_TOKEN_GENERATOR"] = True
    server = AuthorizationServer(app, query_client=lambda client_id: client, save_token=save)
    server.register_grant(Codes, [CodeChallenge(required=True)])
    server.register_grant(Refreshes)

    @app.post("/token")
    def token() -> Any:
        return server.create_token_response()

    @app.get("/authorize")
    def authorize() -> Any:
        grant = server.get_consent_grant(end_user=request.args["login_hint"])
        return server.create_authorization_response(grant_user=request.args["login_hint"], grant=grant)

    @app.get("/.well-known/oauth-authorization-server")
    def metadata() -> Any:
        places = {"authorization_endpoint": f"{issuer}/authorize", "token_endpoint": f"{issuer}/token"}
        return {"issuer": issuer, **places, "code_challenge_methods_supported": ["S256"]}

    @app.post("/_test")
    def control() -> Any:
        wanted = request.get_json()
        client.redirect_uri = wanted.get("redirect_uri", client.redirect_uri)
        disabled.add(wanted.get("disable"))
        for row in tokens.values():
            row.revoked = row.revoked or row.user == wanted.get("end_grants_of")
        return {"client_id": CLIENT, "client_secret": SECRET}

    return app


def main() -> None:
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # loopback
    server = WSGIServer(("127.0.0.1", 0), Silent)
    issuer = f"http://127.0.0.1:{server.server_port}"
    server.set_app(application(issuer))
    print(json.dumps({"issuer": issuer, "control": f"{issuer}/_test"}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
