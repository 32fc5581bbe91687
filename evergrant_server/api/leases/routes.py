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

from evergrant_server.access.context import ApiContext
from evergrant_server.access.decision import IssuedLease, LeaseIssuer
from evergrant_server.access.refusals import LeaseRequest, ProvedRequest
from evergrant_server.api.http.models import Body
from evergrant_server.api.leases.models import LeaseBody, ProofBody, TokenBody
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.problems import invalid_request_response
from evergrant_server.store import LeaseRow
from evergrant_server.telemetry import metrics
from providers.requests.dpop import dpop_proof

LEASE_PATH = "/v1/lease"
TOKEN_PATH = "/v1/connections/{connection_id}/token"
PROOF_PATH = "/v1/connections/{connection_id}/proof"

_MEMBERS = {shape.__name__: shape.model_fields for shape in (LeaseBody, TokenBody, ProofBody)}
B = TypeVar("B", bound=Body)
Endpoint = Callable[[Request], Awaitable[Response]]


class LeaseRoute(Route):
    """Puts itself into the scope, as FastAPI's routes do, so that traces have the path template."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self} if child_scope else child_scope


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
                match, child_scope = route.matches(scope)
                if match is Match.FULL:
                    scope.update(child_scope)
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


def routes(api: ApiContext, issuer: LeaseIssuer) -> list[LeaseRoute]:
    """`POST /v1/lease`, `POST /v1/connections/{id}/token` and `…/proof`."""
    base_url = api.settings.public_url

    async def by_names(request: Request) -> Response:
        caller = await api.authenticator.authenticate_cached(request)
        body = (await _parse_body(request, LeaseBody)).with_challenged_scopes()
        lease = await issuer.issue(request, body.lease_request_by_names(), caller)
        return _lease_response(lease, api)

    async def by_id(request: Request) -> Response:
        caller = await api.authenticator.authenticate_cached(request)
        body = (await _parse_body(request, TokenBody)).with_challenged_scopes()
        lease = await issuer.issue(request, body.lease_request(_connection_id(request)), caller)
        return _lease_response(lease, api)

    async def proof_by_id(request: Request) -> Response:
        caller = await api.authenticator.authenticate_cached(request)
        body = await _parse_body(request, ProofBody)
        proved = ProvedRequest(body.htm, body.proved_url)
        lease_request = LeaseRequest(_connection_id(request), proof=proved)
        lease = await issuer.issue(request, lease_request, caller)
        proof = await _create_proof(api, lease, body)
        facts = _grant_members(lease.row)
        members = {"proof": proof, "htu": body.proved_url, **facts, "audit": lease.place}
        return _no_store(json.dumps(members))

    return [
        LeaseRoute(LEASE_PATH, _counting_refusals(by_names, base_url), methods=["POST"]),
        LeaseRoute(TOKEN_PATH, _counting_refusals(by_id, base_url), methods=["POST"]),
        LeaseRoute(PROOF_PATH, _counting_refusals(proof_by_id, base_url), methods=["POST"]),
    ]


def _counting_refusals(endpoint: Endpoint, base_url: str) -> Endpoint:
    async def checked(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Failure as failure:
            metrics.count(metrics.LEASES, failure.code, metrics.UNKNOWN_PROVIDER)
            raise
        except ValidationError as error:
            metrics.count(metrics.LEASES, ErrorCode.INVALID_REQUEST, metrics.UNKNOWN_PROVIDER)
            return invalid_request_response(error, base_url, _MEMBERS.get(error.title, ()))

    return checked


async def _parse_body(request: Request, shape: type[B]) -> B:
    """The body, judged. An empty one is all defaults, where the shape has them."""
    return shape.model_validate_json(await request.body() or b"{}")


def _connection_id(request: Request) -> ConnectionId:
    return ConnectionId(request.path_params["connection_id"])


def _lease_response(lease: IssuedLease, api: ApiContext) -> Response:
    """Open the seal. The lease is in the audit log by now (docs/architecture.md, rule 8)."""
    row = lease.row
    expires_at = row.grant.expires_at if row.grant else None
    left = (expires_at - api.clock.now()).total_seconds() if expires_at else None
    metrics.lease_cells(row.provider).count(left)
    token = lease.open_access_token(api.ring).reveal()
    return _no_store(f'{{"access_token": {json.dumps(token)}, "audit": "{lease.place}", {rest_of_lease(row)}')


def rest_of_lease(row: LeaseRow) -> str:
    """The JSON of a lease's answer behind the token and the place of its record."""
    assert row.grant is not None
    return json.dumps({"scopes": row.grant.scopes, **_grant_members(row)})[1:]


def _grant_members(row: LeaseRow) -> dict[str, object]:
    """The facts of the leased grant that every answer has."""
    assert row.grant is not None
    return {
        "token_type": row.grant.token_type,
        "expires_at": row.grant.expires_at.isoformat() if row.grant.expires_at else None,
        "generation": row.generation,
        "connection_id": row.connection_id,
        "grant_over": row.grant_over,
    }


def _no_store(body: str) -> Response:
    return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")


async def _create_proof(api: ApiContext, lease: IssuedLease, wanted: ProofBody) -> str:
    """The DPoP proof (RFC 9449), with the hash of the token that the row holds. Its record is committed by
    now, and the private key never leaves the API.

    Raises Failure CONSENT_REQUIRED when the grant is gone, SEAL_BROKEN, KEY_UNAVAILABLE.
    """
    row = lease.row
    async with api.store.read() as tx:
        key = await tx.proof_keys.get(row.tenant, row.connection_id)
    if key is None:
        raise Failure(ErrorCode.CONSENT_REQUIRED, f"{row.connection_id} holds no proof key.")
    return dpop_proof(
        key,
        wanted.htm,
        wanted.proved_url,
        api.clock.now(),
        nonce=wanted.nonce,
        access_token=lease.open_access_token(api.ring),
    )
