"""The OAuth client that sends a token request: a public one says who it is, others sign an assertion."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from evergrant_server.api.oauth.client_authentication import (
    JWT_BEARER,
    ClientTokenRequest,
    TokenRefused,
    invalid_client,
)
from evergrant_server.core.access import App
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import CLAIMED
from evergrant_server.core.messages.integrations import ReadClientDocument
from evergrant_server.core.messages.jobs import READ_CLIENT_DOCUMENT
from evergrant_server.core.oauth.clients import ClientAuthMethod, GatewayClient
from evergrant_server.core.text import is_storable_text
from evergrant_server.crypto.client_assertions import AssertionRefused, is_signed_by, read_assertion
from evergrant_server.crypto.client_registrations import registration_in
from evergrant_server.store import Transaction
from evergrant_server.telemetry.traces import trace_of

READ_TIMEOUT_S = 5.0  # for a metadata document: the client waits, and has a limit of its own
_USE_INTERVAL = timedelta(days=1)
_UNKNOWN = "The client isn't registered, or its identity isn't proven by the request."


_RequireHeld = Callable[[Transaction, GatewayClient], Awaitable[None]]


class KnownClient(NamedTuple):
    """The client of a request, and the assertion's `jti` with its end, which counts once."""

    client: GatewayClient
    once: tuple[str, datetime] | None = None


async def client_of(request: ClientTokenRequest) -> KnownClient:
    """The client, authenticated as it is registered (RFC 6749 section 3.2.1). Raises TokenRefused, Failure
    AUTHORITY_BROKEN."""
    return authenticated(request, await _named_client(request))


async def current_client_of(request: ClientTokenRequest, require_held: _RequireHeld) -> KnownClient:
    """As `client_of`, by what its metadata document says now.

    `require_held` raises TokenRefused unless the request holds something of the client's: for a stranger no
    host is called.
    """
    client = await _named_client(request)
    if not client.is_fresh(request.now):
        async with request.api.store.read() as tx:
            await require_held(tx, client)
        await _read_again(request, client)
        client = await _named_client(request)
        _require_counting(request, client)
    return authenticated(request, client)


async def _named_client(request: ClientTokenRequest) -> GatewayClient:
    client_id = request.parameters.get("client_id")
    if "authorization" in request.http.headers or "client_secret" in request.parameters:
        raise invalid_client("Clients of the gateways have no secret: say client_id, or sign an assertion.")
    if client_id is None:
        raise invalid_client("client_id is missing.")
    if not is_storable_text(client_id):
        raise invalid_client(_UNKNOWN)
    carried = registration_in(request.api.ring, Tenant(request.api.settings.tenant), client_id)
    async with request.api.store.read() as tx:
        client = await tx.oauth_clients.by_client_id(client_id if carried is None else carried.client_id)
    if client is None:
        raise invalid_client(_UNKNOWN)
    if client.disabled:
        raise TokenRefused("unauthorized_client", "An admin has disabled the client.")
    return client


def authenticated(request: ClientTokenRequest, client: GatewayClient) -> KnownClient:
    """The client, if the request proves what it is registered with. Raises TokenRefused."""
    if client.auth_method is not ClientAuthMethod.NONE:
        return KnownClient(client, _proven(request, client))
    if "client_assertion" in request.parameters or "client_assertion_type" in request.parameters:
        raise invalid_client("The client is registered without keys: it sends no assertion.")
    return KnownClient(client)


def _proven(request: ClientTokenRequest, client: GatewayClient) -> tuple[str, datetime]:
    parameters = request.parameters
    if parameters.get("client_assertion_type") != JWT_BEARER:
        raise invalid_client(f"The client proves its key: client_assertion_type must be {JWT_BEARER}.")
    try:
        text = parameters.get("client_assertion", "")
        assertion = read_assertion(text, request.issuer, request.now, parameters["client_id"])
    except AssertionRefused as refused:
        raise invalid_client(str(refused)) from None
    if not is_signed_by(assertion, (client.jwks or {}).get("keys", ())):
        raise invalid_client(_UNKNOWN)
    return assertion.jti, assertion.expires_at


async def note_use(tx: Transaction, known: KnownClient, app: App, now: datetime) -> None:
    """Use the client's assertion up, and note its use, to the day: one client may have many users.

    Raises TokenRefused for an assertion that was used before.
    """
    used_at = known.client.used_at
    if used_at is None or now - used_at >= _USE_INTERVAL:
        await tx.oauth_clients.used(known.client, now)
    await use_up(tx, known, app)


async def use_up(tx: Transaction, known: KnownClient, app: App) -> None:
    """Raises TokenRefused for an assertion that was used before."""
    if known.once is None:
        return
    jti, expires_at = known.once
    if not await tx.tokens.use_assertion(app, f"{known.client.client_id} {jti}", expires_at):
        raise invalid_client("The assertion's jti was used before.")


# --- metadata documents (ADR 0070): a stale one is read again before it counts ------------------


async def _read_again(request: ClientTokenRequest, client: GatewayClient) -> None:
    """Have a worker read the document (ADR 0008) into the client's row, and wait for it, for a while.

    Where it can't be read, what it said before counts for DOCUMENT_GRACE more, so that a passing failure of
    the client's site ends no session.
    """
    context = trace_of(request.http).request_context(f"{CLAIMED}client:{client.client_id}")
    tenant = Tenant(request.api.settings.tenant)
    order = ReadClientDocument(tenant=tenant, client_id=client.client_id, context=context)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await request.api.link.run_job(READ_CLIENT_DOCUMENT, order, timeout=READ_TIMEOUT_S)
    except TimeoutError:
        return
    except Failure as failure:
        if failure.code is not ErrorCode.TEMPORAL_UNAVAILABLE:
            raise


def _require_counting(request: ClientTokenRequest, client: GatewayClient) -> None:
    """Raise TokenRefused for a client whose document can't be used, or couldn't be read for too long."""
    if client.fresh_until is None:
        raise invalid_client("The client's metadata document can't be used any more: see what it says now.")
    if not client.outlasts_failure(request.now):
        why = "The client's metadata document couldn't be read for a day: refresh again once it can."
        raise invalid_client(why)
