"""The lease routes: plain ASGI endpoints, because they are the product's hot loop."""

import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from evergrant_server.api.leasing import Lease, Leasing
from evergrant_server.api.parts import Parts
from evergrant_server.api.problems import invalid
from evergrant_server.api.refusals import Ask
from evergrant_server.api.shapes import LeaseBody, TokenBody
from evergrant_server.core.ids import ConnectionId

LEASE_PATH = "/v1/lease"
TOKEN_PATH = "/v1/connections/{connection_id}/token"

B = TypeVar("B", bound=TokenBody)
Endpoint = Callable[[Request], Awaitable[Response]]


def routes(parts: Parts) -> list[Route]:
    """`POST /v1/lease` and `POST /v1/connections/{id}/token`."""
    leasing = Leasing(parts)
    base_url = parts.settings.public_url

    async def by_names(request: Request) -> Response:
        known = await parts.authenticator.cached(request)
        body = await _read(request, LeaseBody)
        lease = await leasing.lease(request, Ask(body, body, None), known)
        return _shown(lease, parts)

    async def by_id(request: Request) -> Response:
        known = await parts.authenticator.cached(request)
        body = await _read(request, TokenBody)
        connection_id = ConnectionId(request.path_params["connection_id"])
        lease = await leasing.lease(request, Ask(body, None, connection_id), known)
        return _shown(lease, parts)

    return [
        Route(LEASE_PATH, _checked(by_names, base_url), methods=["POST"]),
        Route(TOKEN_PATH, _checked(by_id, base_url), methods=["POST"]),
    ]


def _checked(endpoint: Endpoint, base_url: str) -> Endpoint:
    async def checked(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ValidationError as error:
            return invalid(error, base_url)

    return checked


async def _read(request: Request, shape: type[B]) -> B:
    """The body, judged. An empty one is all defaults, where the shape has them."""
    return shape.model_validate_json(await request.body() or b"{}")


def _shown(lease: Lease, parts: Parts) -> Response:
    """Open the seal. The lease is in the audit log by now (invariant 8)."""
    row = lease.row
    assert row.grant is not None
    body = {
        "access_token": row.open(parts.ring).reveal(),
        "token_type": row.grant.token_type,
        "expires_at": row.grant.expires_at.isoformat() if row.grant.expires_at else None,
        "scopes": row.grant.scopes,
        "generation": row.generation,
        "connection_id": row.connection_id,
    }
    return Response(json.dumps(body), 200, {"Cache-Control": "no-store"}, "application/json")
