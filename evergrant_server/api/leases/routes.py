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

from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.problems import invalid_request_response
from evergrant_server.api.http.requests import Body
from evergrant_server.api.leases.decision import Lease, LeaseIssuer
from evergrant_server.api.leases.dpop import DpopProofs, ProofRequest
from evergrant_server.api.leases.models import LeaseBody, ProofBody, TokenBody
from evergrant_server.api.leases.refresher import RefreshWaiter
from evergrant_server.api.leases.refusals import LeaseRequest
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.telemetry import metrics

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


class LeaseMiddleware:
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
                    await (await _respond(route.endpoint, request))(scope, receive, send)
                    return
        await self._app(scope, receive, send)


async def _respond(endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(request)
    except (Failure, HTTPException) as error:
        handlers = request.app.exception_handlers
        return await handlers[Failure if isinstance(error, Failure) else HTTPException](request, error)


def routes(api: ApiContext, refresher: RefreshWaiter) -> list[LeaseRoute]:
    """`POST /v1/lease`, `POST /v1/connections/{id}/token` and `…/proof`."""
    leasing, proving = LeaseIssuer(api, refresher), DpopProofs(api)
    base_url = api.settings.public_url

    async def by_names(request: Request) -> Response:
        known = await api.authenticator.authenticate_cached(request)
        body = await _parse_body(request, LeaseBody)
        lease = await leasing.issue(request, LeaseRequest(body, body, None), known)
        return _lease_response(lease, api)

    async def by_id(request: Request) -> Response:
        known = await api.authenticator.authenticate_cached(request)
        body = await _parse_body(request, TokenBody)
        connection_id = ConnectionId(request.path_params["connection_id"])
        lease = await leasing.issue(request, LeaseRequest(body, None, connection_id), known)
        return _lease_response(lease, api)

    async def a_proof(request: Request) -> Response:
        known = await api.authenticator.authenticate_cached(request)
        body = await _parse_body(request, ProofBody)
        wanted = ProofRequest(body.htm, body.htu, body.nonce)
        connection_id = ConnectionId(request.path_params["connection_id"])
        lease = await leasing.issue(request, LeaseRequest(TokenBody(), None, connection_id, wanted), known)
        return _proof_response(lease, wanted.htu, await proving.create(lease.row, wanted))

    return [
        LeaseRoute(LEASE_PATH, _counting_refusals(by_names, base_url), methods=["POST"]),
        LeaseRoute(TOKEN_PATH, _counting_refusals(by_id, base_url), methods=["POST"]),
        LeaseRoute(PROOF_PATH, _counting_refusals(a_proof, base_url), methods=["POST"]),
    ]


def _counting_refusals(endpoint: Endpoint, base_url: str) -> Endpoint:
    async def checked(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Failure as failure:
            metrics.count_refused_lease(failure.code)
            raise
        except ValidationError as error:
            metrics.count_refused_lease(ErrorCode.INVALID_REQUEST)
            return invalid_request_response(error, base_url)

    return checked


async def _parse_body(request: Request, shape: type[B]) -> B:
    """The body, judged. An empty one is all defaults, where the shape has them."""
    return shape.model_validate_json(await request.body() or b"{}")


def _lease_response(lease: Lease, api: ApiContext) -> Response:
    """Open the seal. The lease is in the audit log by now (docs/architecture.md, rule 8)."""
    row = lease.row
    assert row.grant is not None
    expires_at = row.grant.expires_at
    left = (expires_at - api.clock.now()).total_seconds() if expires_at else None
    metrics.count_lease(row.provider, left)
    body = {
        "access_token": row.open_access_token(api.ring).reveal(),
        "token_type": row.grant.token_type,
        "expires_at": expires_at.isoformat() if expires_at else None,
        "scopes": row.grant.scopes,
        "generation": row.generation,
        "connection_id": row.connection_id,
    }
    return Response(json.dumps(body), 200, {"Cache-Control": "no-store"}, "application/json")


def _proof_response(lease: Lease, htu: str, proof: str) -> Response:
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
