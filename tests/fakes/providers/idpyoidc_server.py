"""idpyoidc with one client, its sessions in memory, on a free port, for end-to-end tests.

The library leaves HTTP to whoever uses it: here it is answered as its own example of a server does
(example/flask_op), where every exception of the token endpoint is a 400 with `invalid_request`. Whoever
`login_hint` names consents. Run as a program of its own by `tests.fakes.providers.real_servers`.
"""

import json
import logging
import secrets
import socket
from typing import Any

import uvicorn
from idpyoidc.message.oauth2 import ResponseMessage
from idpyoidc.server import Server
from idpyoidc.server.configure import ASConfiguration
from idpyoidc.server.endpoint import Endpoint
from idpyoidc.server.user_authn.user import NoAuthn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT, SECRET = "evergrant", secrets.token_urlsafe(32)
_DAY_S = 86_400
_MINTS = {"supports_minting": ["access_token", "refresh_token"], "expires_in": _DAY_S}
_RULES = {
    "authorization_code": {**_MINTS, "max_usage": 1},
    "access_token": {"expires_in": 3600},
    "refresh_token": _MINTS,
}


def oauth_server(issuer: str) -> Server:
    """Rotates: each refresh token works once."""
    authorization = {"class": "idpyoidc.server.oauth2.authorization.Authorization", "path": "authorization"}
    token = {
        "class": "idpyoidc.server.oauth2.token.Token",
        "path": "token",
        "kwargs": {"client_authn_method": ["client_secret_basic"], "revoke_refresh_on_issue": True},
    }
    metadata = {
        "class": "idpyoidc.server.oauth2.server_metadata.ServerMetadata",
        "path": ".well-known/oauth-authorization-server",
        "kwargs": {"client_authn_method": None},
    }
    password = "idpyoidc.server.user_authn.authn_context.INTERNETPROTOCOLPASSWORD"
    configuration = {
        "issuer": issuer,
        "endpoint": {"server_metadata": metadata, "authorization": authorization, "token": token},
        "authz": {
            "class": "idpyoidc.server.authz.AuthzHandling",
            "kwargs": {"grant_config": {"usage_rules": _RULES, "expires_in": 30 * _DAY_S}},
        },
        "authentication": {"anybody": {"acr": password, "class": NoAuthn, "kwargs": {"user": ""}}},
        "token_handler_args": {
            "key_conf": {"key_defs": [{"type": "OCT", "bytes": 24, "use": ["enc"], "kid": "code"}]},
            "code": {"kwargs": {"lifetime": 120}},
            "token": {"kwargs": {"lifetime": 3600}},
            "refresh": {"kwargs": {"lifetime": _DAY_S}},
        },
        "session_params": {"encrypter": {"kwargs": {"password": secrets.token_urlsafe(16), "salt": "salt"}}},
        "cookie_handler": {
            "class": "idpyoidc.server.cookie_handler.CookieHandler",
            "kwargs": {"keys": {"key_defs": [{"type": "OCT", "use": ["enc"], "kid": "enc"}]}},
        },
        "preference": {
            "scopes_supported": ["read"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
        },
    }
    return Server(ASConfiguration(configuration), cwd=".")


async def answer(endpoint: Endpoint, request: Request) -> Response:
    """What an endpoint of the library makes of a request."""
    asked = dict(request.query_params) if request.method == "GET" else dict(await request.form())
    http = {"headers": dict(request.headers), "method": request.method, "url": str(request.url)}
    try:
        parsed = endpoint.parse_request(asked, http_info=http)
        if isinstance(parsed, ResponseMessage) and "error" in parsed:
            return Response(parsed.to_json(), 400, media_type="application/json")
        reply = endpoint.process_request(parsed, http_info=http, issue_refresh=True)
    except Exception as error:
        described = {"error": "invalid_request", "error_description": str(error)}
        return JSONResponse(described, 400)
    written = endpoint.do_response(request=parsed, **reply)
    if endpoint.response_placement == "url":
        return RedirectResponse(written["response"], 302)
    return Response(written["response"], written.get("response_code", 200), media_type="application/json")


def main() -> None:
    logging.disable(logging.CRITICAL)
    listening = socket.create_server(("127.0.0.1", 0))
    issuer = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = oauth_server(issuer)
    context = server.get_context()

    async def serve(request: Request) -> Response:
        name = request.path_params["endpoint"]
        hint = request.query_params.get("login_hint")
        context.authn_broker["anybody"]["method"].user = hint
        return await answer(server.get_endpoint(name), request)

    async def metadata(request: Request) -> Response:
        return await answer(server.get_endpoint("server_metadata"), request)

    async def control(request: Request) -> JSONResponse:
        wanted: dict[str, Any] = await request.json()
        if "redirect_uri" in wanted:
            context.cdb[CLIENT] = {
                "client_id": CLIENT,
                "client_secret": SECRET,
                "redirect_uris": [(wanted["redirect_uri"], {})],
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "allowed_scopes": ["read"],
            }
        if "end_grants_of" in wanted:
            for grant in context.session_manager.grants(path=[wanted["end_grants_of"], CLIENT]):
                grant.revoke_token()  # all of them
        return JSONResponse({"client_id": CLIENT, "client_secret": SECRET})

    routes = [
        Route("/_test", control, methods=["POST"]),
        Route("/.well-known/oauth-authorization-server", metadata),
        Route("/{endpoint:str}", serve, methods=["GET", "POST"]),
    ]
    print(json.dumps({"issuer": issuer, "control": f"{issuer}/_test"}), flush=True)
    uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
