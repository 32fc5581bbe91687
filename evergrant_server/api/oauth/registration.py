"""`POST /oauth/register`: a client of the gateways registers itself (RFC 7591).

Open to all, as MCP clients expect: a registration gives no right. It is counted by address, and writes
nothing: the client id carries it until a person lets the client in.
"""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from evergrant_server.access.context import ApiContext
from evergrant_server.api.http.call import ApiDep
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.token_endpoint import OAuthError
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import OAuthClientId, Tenant, new_id
from evergrant_server.core.oauth.client_metadata import (
    GRANT_TYPES,
    ClientMetadata,
    MetadataRefused,
    read_client_metadata,
)
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.core.oauth.requests import SCOPES
from evergrant_server.core.text import is_storable
from evergrant_server.crypto.client_assertions import public_key_set
from evergrant_server.crypto.client_registrations import client_id_of
from evergrant_server.telemetry import metrics

router = APIRouter(tags=["oauth"])

REGISTRATION_PATH = "/oauth/register"
_LONGEST_BODY = 64 * 1024
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_OFF = (
    "Clients don't register themselves here. An admin allows it with: evergrant clients login INTEGRATION "
    "--app APP"
)
_TOO_MUCH = "this is more than a client id can carry: fewer redirect URIs or keys, or an admin registers it"


class RegisteredView(View):
    """A registered client (RFC 7591 section 3.2.1). It has no secret: it sends a PKCE challenge, or signs
    assertions with its own key."""

    client_id: str
    client_id_issued_at: int
    client_name: str
    redirect_uris: tuple[str, ...]
    application_type: str
    token_endpoint_auth_method: str
    grant_types: tuple[str, ...] = GRANT_TYPES
    response_types: tuple[str, ...] = ("code",)
    scope: str = " ".join(SCOPES)
    jwks: dict[str, Any] | None = None


_MEMBERS = {
    "client_name": {"type": "string"},
    "redirect_uris": {"type": "array", "items": {"type": "string"}},
    "application_type": {"type": "string", "enum": ["native", "web"]},
    "token_endpoint_auth_method": {"type": "string"},
    "jwks": {"type": "object"},
}
_SCHEMA = {"type": "object", "required": ["redirect_uris"], "properties": _MEMBERS}
_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": OAuthError, "description": "An error of RFC 7591 section 3.2.2"}
}


@router.post(
    REGISTRATION_PATH, status_code=201, response_model=RegisteredView, responses=_ERRORS, openapi_extra=_BODY
)
async def register_client(request: Request, api: ApiDep) -> Response:
    """Register an OAuth client of the gateways, such as a coding agent (RFC 7591).

    A client gets no right by that: a person consents to it, and an admin has said as which app it acts.
    """
    await api.limits.count_registration(request.scope)
    try:
        metadata = read_client_metadata(await _read_body(request), public_key_set)
        async with api.store.read() as tx:
            if not await tx.client_logins.any_takes_registrations():
                raise MetadataRefused("invalid_client_metadata", _OFF)
        view = _register(api, metadata)
    except MetadataRefused as refused:
        metrics.count(metrics.CLIENTS, refused.error)
        error = OAuthError(error=refused.error, error_description=refused.description)
        return JSONResponse(error.model_dump(), 400, _NO_STORE)
    metrics.count(metrics.CLIENTS, "registered")
    return Response(view.model_dump_json(exclude_none=True), 201, _NO_STORE, "application/json")


async def _read_body(request: Request) -> Mapping[str, Any]:
    """The client's metadata. Raises MetadataRefused, Failure BODY_TOO_LARGE."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MetadataRefused("invalid_client_metadata", "Send the metadata as application/json.")
    body = await request.body()
    if len(body) > _LONGEST_BODY:
        raise Failure(ErrorCode.BODY_TOO_LARGE)
    try:
        metadata = json.loads(body)
    except (ValueError, RecursionError):
        raise MetadataRefused("invalid_client_metadata", "The body isn't JSON.") from None
    if not isinstance(metadata, dict) or not is_storable(metadata):
        raise MetadataRefused("invalid_client_metadata", "The body isn't an object of JSON.")
    return metadata


def _register(api: ApiContext, metadata: ClientMetadata) -> RegisteredView:
    """The client, with an id that carries its registration. Raises MetadataRefused for more than fits."""
    id = OAuthClientId(new_id("cli"))
    client = GatewayClient(
        tenant=Tenant(api.settings.tenant),
        id=id,
        client_id=id,
        kind=ClientKind.REGISTERED,
        name=metadata.name,
        redirect_uris=metadata.redirect_uris,
        application_type=metadata.application_type,
        auth_method=metadata.auth_method,
        jwks=metadata.jwks,
        client_uri=metadata.client_uri,
        created_at=api.clock.now(),
    )
    client_id = client_id_of(api.ring, client)
    if client_id is None:
        raise MetadataRefused("invalid_client_metadata", _TOO_MUCH)
    return RegisteredView(
        client_id=client_id,
        client_id_issued_at=int(client.created_at.timestamp()),
        client_name=client.name,
        redirect_uris=client.redirect_uris,
        application_type=client.application_type,
        token_endpoint_auth_method=client.auth_method.value,
        jwks=client.jwks,
    )
