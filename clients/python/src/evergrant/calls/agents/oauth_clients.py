"""Calls about OAuth clients of the gateway: as which app they act, which are registered."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evergrant.calls.call import Call, Page, object_parser, page_parser, path_of, require_success

_LOGIN, _CLIENTS = "/v1/client-login", "/v1/oauth-clients"


@dataclass(frozen=True, slots=True)
class ClientLogin:
    """As which app OAuth clients act, where their persons log in, and which kinds of clients are taken.

    `mcp_url` is what a person gives an MCP client.
    """

    app: str
    integration: str
    issuer: str
    claim: str
    domains: tuple[str, ...]
    registration: bool
    documents: bool
    changed_at: datetime
    redirect_uri: str
    mcp_url: str


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """An OAuth client. `kind`: `registered` by itself, a metadata `document`, or made by an `admin`."""

    id: str
    client_id: str
    kind: str
    name: str
    redirect_uris: tuple[str, ...]
    application_type: str
    auth_method: str
    disabled: bool
    created_at: datetime
    used_at: datetime | None


def client_login() -> Call[ClientLogin]:
    """As which app OAuth clients act."""
    return Call("GET", _LOGIN, object_parser("login", ClientLogin))


def put_client_login(
    integration: str,
    app: str,
    *,
    claim: str = "sub",
    domains: tuple[str, ...] = (),
    registration: bool = True,
    documents: bool = True,
) -> Call[ClientLogin]:
    """Let OAuth clients act as an app, for persons who log in at the integration's issuer.

    A change ends what was authorized before.
    """
    body = {
        "integration": integration,
        "app": app,
        "claim": claim,
        "domains": list(domains),
        "registration": registration,
        "documents": documents,
    }
    return Call("PUT", _LOGIN, object_parser("login", ClientLogin), body=body)


def delete_client_login() -> Call[None]:
    """Let no OAuth clients act. Ends what was authorized before."""
    return Call("DELETE", _LOGIN, require_success)


def create_oauth_client(
    name: str, redirect_uris: tuple[str, ...], *, jwks: dict[str, Any] | None = None
) -> Call[OAuthClient]:
    """Register an OAuth client; `jwks` are public keys with which it proves itself."""
    body = {"name": name, "redirect_uris": list(redirect_uris), "jwks": jwks}
    return Call("POST", _CLIENTS, object_parser("client", OAuthClient), body=body)


def oauth_clients() -> Call[Page[OAuthClient]]:
    """The tenant's OAuth clients."""
    return Call("GET", _CLIENTS, page_parser("client", OAuthClient))


def switch_oauth_client(client_id: str, *, disabled: bool) -> Call[OAuthClient]:
    """Turn an OAuth client off, or on again. Its tokens count no more while it is off."""
    path, body = path_of("oauth-clients", client_id), {"disabled": disabled}
    return Call("PUT", path, object_parser("client", OAuthClient), body=body)


def delete_oauth_client(client_id: str) -> Call[None]:
    """Delete an OAuth client. Its tokens count no more."""
    return Call("DELETE", path_of("oauth-clients", client_id), require_success)
