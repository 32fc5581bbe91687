"""The lease routes: plain ASGI endpoints, because they are the product's hot loop."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from evergrant_server import telemetry_metrics as metrics
from evergrant_server.api.leasing import Lease, Leasing
from evergrant_server.api.parts import Parts
from evergrant_server.api.problems import invalid
from evergrant_server.api.proving import ProofWanted, Proving
from evergrant_server.api.refusals import Ask
from evergrant_server.api.shapes import Body, LeaseBody, ProofBody, TokenBody
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import ConnectionId

LEASE_PATH = "/v1/lease"
TOKEN_PATH = "/v1/connections/{connection_id}/token"
PROOF_PATH = "/v1/connections/{connection_id}/proof"

B = TypeVar("B", bound=Body)
Endpoint = Callable[[Request], Awaitable[Response]]


class LeaseRoute(Route):
    """Leaves itself in the scope, as FastAPI's routes do, so that a trace knows the template."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return match, {**found, "route": self} if found else found


class Ahead:
    """ASGI middleware: answers the lease routes before the router, its exit stacks and its search.

    Anything else goes on, a lease path with another method too. Failures are answered by the
    application's own handlers.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[LeaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for route in self._routes:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    request = Request(scope, receive)
                    await (await _answered(route.endpoint, request))(scope, receive, send)
                    return
        await self._app(scope, receive, send)


async def _answered(endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(request)
    except (Failure, HTTPException) as error:
        handlers = request.app.exception_handlers
        return await handlers[Failure if isinstance(error, Failure) else HTTPException](request, error)


def routes(parts: Parts) -> list[LeaseRoute]:
    """`POST /v1/lease`, `POST /v1/connections/{id}/token` and `…/proof`."""
    leasing, proving = Leasing(parts), Proving(parts)
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

    async def a_proof(request: Request) -> Response:
        known = await parts.authenticator.cached(request)
        body = await _read(request, ProofBody)
        wanted = ProofWanted(body.htm, body.htu, body.nonce)
        connection_id = ConnectionId(request.path_params["connection_id"])
        lease = await leasing.lease(request, Ask(TokenBody(), None, connection_id, wanted), known)
        return _proof_shown(lease, wanted.target, await proving.made(lease.row, wanted))

    return [
        LeaseRoute(LEASE_PATH, _checked(by_names, base_url), methods=["POST"]),
        LeaseRoute(TOKEN_PATH, _checked(by_id, base_url), methods=["POST"]),
        LeaseRoute(PROOF_PATH, _checked(a_proof, base_url), methods=["POST"]),
    ]


def _checked(endpoint: Endpoint, base_url: str) -> Endpoint:
    async def checked(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Failure as failure:
            metrics.lease_refused(failure.code)
            raise
        except ValidationError as error:
            metrics.lease_refused(Code.INVALID_REQUEST)
            return invalid(error, base_url)

    return checked


async def _read(request: Request, shape: type[B]) -> B:
    """The body, judged. An empty one is all defaults, where the shape has them."""
    return shape.model_validate_json(await request.body() or b"{}")


def _shown(lease: Lease, parts: Parts) -> Response:
    """Open the seal. The lease is in the audit log by now (docs/architecture.md, rule 8)."""
    row = lease.row
    assert row.grant is not None
    expires_at = row.grant.expires_at
    left = (expires_at - parts.clock.now()).total_seconds() if expires_at else None
    metrics.leased(row.provider, left)
    body = {
        "access_token": row.open(parts.ring).reveal(),
        "token_type": row.grant.token_type,
        "expires_at": expires_at.isoformat() if expires_at else None,
        "scopes": row.grant.scopes,
        "generation": row.generation,
        "connection_id": row.connection_id,
    }
    return Response(json.dumps(body), 200, {"Cache-Control": "no-store"}, "application/json")


def _proof_shown(lease: Lease, htu: str, proof: str) -> Response:
    row = lease.row
    assert row.grant is not None
    body = {
        "proof": proof,
        "token_type": row.grant.token_type,
        "htu": htu,
        "generation": row.generation,
        "expires_at": row.grant.expires_at.isoformat() if row.grant.expires_at else None,
        "connection_id": row.connection_id,
    }
    return Response(json.dumps(body), 200, {"Cache-Control": "no-store"}, "application/json")
