"""Which OAuth client sends a token request: a public one says who it is, others sign an assertion."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused, invalid_client
from evergrant_server.api.oauth.families.client_documents import read_again, require_counting
from evergrant_server.core.access import App
from evergrant_server.core.ids import Tenant
from evergrant_server.core.oauth.clients import ClientAuthMethod, GatewayClient
from evergrant_server.core.text import is_storable_text
from evergrant_server.crypto.client_assertions import AssertionRefused, is_signed_by, read_assertion
from evergrant_server.crypto.client_registrations import registration_in
from evergrant_server.store import Transaction

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523 section 2.2
_USE_INTERVAL = timedelta(days=1)
_UNKNOWN = "The client isn't registered, or its identity isn't proven by the request."


RequireHeld = Callable[[Transaction, GatewayClient], Awaitable[None]]


class KnownClient(NamedTuple):
    """The client of a request, and the assertion's `jti` with its end, which counts once."""

    client: GatewayClient
    once: tuple[str, datetime] | None = None


async def client_of(request: ClientTokenRequest) -> KnownClient:
    """The client, authenticated as it is registered (RFC 6749 section 3.2.1). Raises TokenRefused, Failure
    AUTHORITY_BROKEN."""
    return _authenticated(request, await _named_client(request))


async def current_client_of(request: ClientTokenRequest, require_held: RequireHeld) -> KnownClient:
    """As `client_of`, by what its metadata document says now.

    `require_held` raises TokenRefused unless the request holds something of the client's: for a stranger no
    host is called.
    """
    client = await _named_client(request)
    if not client.is_fresh(request.now):
        async with request.api.store.read() as tx:
            await require_held(tx, client)
        await read_again(request, client)
        client = await _named_client(request)
        require_counting(request, client)
    return _authenticated(request, client)


async def _named_client(request: ClientTokenRequest) -> GatewayClient:
    given = request.parameters
    client_id = given.get("client_id")
    if "authorization" in request.http.headers or "client_secret" in given:
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


def _authenticated(request: ClientTokenRequest, client: GatewayClient) -> KnownClient:
    if client.auth_method is not ClientAuthMethod.NONE:
        return KnownClient(client, _proven(request, client))
    if "client_assertion" in request.parameters or "client_assertion_type" in request.parameters:
        raise invalid_client("The client is registered without keys: it sends no assertion.")
    return KnownClient(client)


def _proven(request: ClientTokenRequest, client: GatewayClient) -> tuple[str, datetime]:
    given = request.parameters
    if given.get("client_assertion_type") != JWT_BEARER:
        raise invalid_client(f"The client proves its key: client_assertion_type must be {JWT_BEARER}.")
    try:
        text = given.get("client_assertion", "")
        assertion = read_assertion(text, request.issuer, request.now, given["client_id"])
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
    if known.once is None:
        return
    jti, expires_at = known.once
    if not await tx.tokens.use_assertion(app, f"{known.client.client_id} {jti}", expires_at):
        raise invalid_client("The assertion's jti was used before.")
