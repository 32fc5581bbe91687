"""The device authorization grant (RFC 8628): a client shows a code, and polls until its person has decided on
another device (`api.pages.authorization.device`).

Once allowed there is an authorization code with the device code's hash, which is used up as any other one.
"""

import secrets

from evergrant_server.access.limits import note_waiting
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.authorization_code import begin_family, begun, end_replayed
from evergrant_server.api.oauth.client_authentication import (
    ClientTokenRequest,
    TokenRefused,
    invalid_client,
)
from evergrant_server.api.oauth.gateway_client import KnownClient, authenticated, current_client_of, use_up
from evergrant_server.api.oauth.token_family import FamilyTokenView, invalid_grant
from evergrant_server.api.pages.authorization.request import (
    AskedResource,
    AuthorizationRefused,
    fresh_client,
    read_device,
    read_resource,
)
from evergrant_server.api.pages.session import DEVICE_PATH, SubjectPages
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import DeviceAuthorizationId, new_id
from evergrant_server.core.oauth.authorizations import AuthorizationCode, TokenFamily
from evergrant_server.core.oauth.clients import GatewayClient, known_id
from evergrant_server.core.oauth.requests import (
    DEVICE_CODE_LASTS,
    DEVICE_INTERVAL_S,
    USER_CODE_LENGTH,
    USER_CODE_LETTERS,
    DeviceAuthorization,
    DeviceStatus,
    shown_user_code,
)
from evergrant_server.store import Transaction
from providers.requests.authorization_url import new_random_value


class DeviceAuthorizationView(View):
    """A device authorization response (RFC 8628 section 3.2). `expires_in` and `interval` are in seconds."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


async def begin_device(request: ClientTokenRequest) -> DeviceAuthorizationView:
    """Both codes, for a client that the tenant's rule takes. Raises TokenRefused.

    The metadata document of a client isn't read for a stranger, but once its person has logged in.
    """
    if "client_id" not in request.parameters:
        raise TokenRefused("invalid_request", "client_id is missing.")
    pages, client_id, now = SubjectPages(request.http), request.parameters["client_id"], request.now
    try:
        resource = _resource_of(request)
        client = await fresh_client(pages, client_id)
        known = None if client is None else authenticated(request, client)
        async with request.api.store.read() as tx:
            asked = await read_device(pages, tx, resource, client)
    except AuthorizationRefused as refused:
        raise TokenRefused(refused.error, refused.sentence) from None
    except Failure as failure:
        if failure.code is not ErrorCode.CLIENT_UNKNOWN:
            raise
        raise invalid_client(failure.detail) from None
    code = new_random_value().reveal()
    device = DeviceAuthorization(
        tenant=asked.rule.tenant,
        id=DeviceAuthorizationId(new_id("dva")),
        client_id=client_id,
        resource=resource.url,
        connection_id=resource.connection_id,
        device_hash=AuthorizationCode.hash_of(code),
        user_code="".join(secrets.choice(USER_CODE_LETTERS) for _ in range(USER_CODE_LENGTH)),
        created_at=now,
        expires_at=now + DEVICE_CODE_LASTS,
    )

    async def write(tx: Transaction) -> None:
        if known is not None:
            await use_up(tx, known, asked.app)
        await tx.device_authorizations.add(device)

    await run_transaction(request.api.store, write)
    return _view_of(device, code, request.issuer)


def _resource_of(request: ClientTokenRequest) -> AskedResource:
    """The resource that the token is for. Raises AuthorizationRefused."""
    gateway_url = request.api.settings.gateway_public_url
    return read_resource(request.parameters.get("resource", f"{gateway_url}/mcp"), gateway_url)


def _view_of(device: DeviceAuthorization, code: str, issuer: str) -> DeviceAuthorizationView:
    shown = shown_user_code(device.user_code)
    return DeviceAuthorizationView(
        device_code=code,
        user_code=shown,
        verification_uri=f"{issuer}{DEVICE_PATH}",
        verification_uri_complete=f"{issuer}{DEVICE_PATH}?user_code={shown}",
        expires_in=int(DEVICE_CODE_LASTS.total_seconds()),
        interval=device.interval_s,
    )


_EXPIRED = "The device code has expired: the client asks for another one."
_UNKNOWN = "The device code is unknown, or belongs to another client."


async def exchange_device_code(request: ClientTokenRequest) -> FamilyTokenView:
    """The first tokens of a family, once the person has allowed it.

    Raises TokenRefused with authorization_pending, slow_down, access_denied or expired_token (RFC 8628
    section 3.5), and those of `exchange_code`. Who only waits isn't authenticated: a client that registers
    itself has no row before it is let in.
    """
    for name in ("device_code", "client_id"):
        if name not in request.parameters:
            raise TokenRefused("invalid_request", f"{name} is missing.")
    waiting = await run_transaction(request.api.store, lambda tx: _poll(tx, request))
    if waiting is not None:
        note_waiting(request.http.scope)
        raise waiting

    async def require_held(tx: Transaction, client: GatewayClient) -> None:
        await _find_code(tx, request, client)

    known = await current_client_of(request, require_held)
    return begun(await run_transaction(request.api.store, lambda tx: _spend(tx, request, known)))


async def _poll(tx: Transaction, request: ClientTokenRequest) -> TokenRefused | None:
    """What a client is told that came to wait; None once its person has allowed it. Raises TokenRefused."""
    device = await tx.device_authorizations.by_device_hash(_hash_of(request))
    if device is None or known_id(device.client_id) != known_id(request.parameters["client_id"]):
        raise invalid_grant(_UNKNOWN)
    if device.status is DeviceStatus.ALLOWED:
        return None
    if device.status is DeviceStatus.DENIED:
        raise TokenRefused("access_denied", "The person did not allow it.")
    if not device.is_waiting(request.now):
        raise TokenRefused("expired_token", _EXPIRED)
    is_early = device.is_early(request.now)
    interval_s = device.interval_s + (DEVICE_INTERVAL_S if is_early else 0)
    await tx.device_authorizations.polled(device, request.now, interval_s)
    if is_early:
        return TokenRefused("slow_down", f"Poll every {interval_s} seconds.")
    return TokenRefused("authorization_pending", "The person has not decided yet.")


async def _spend(
    tx: Transaction, request: ClientTokenRequest, known: KnownClient
) -> FamilyTokenView | TokenFamily | None:
    """The tokens; or the family that the code's second use has ended; None for a code that counts no more."""
    code = await _find_code(tx, request, known.client)
    if code.used_at is not None:
        return await end_replayed(tx, request, code)
    if request.now >= code.expires_at:
        raise TokenRefused("expired_token", _EXPIRED)
    return await begin_family(tx, request, known, code)


async def _find_code(
    tx: Transaction, request: ClientTokenRequest, client: GatewayClient
) -> AuthorizationCode:
    """The code that the person's decision has left for the client, used or not. Raises TokenRefused."""
    code = await tx.authorization_codes.by_hash(_hash_of(request))
    if code is None or code.client_id != client.client_id:
        raise invalid_grant(_UNKNOWN)
    return code


def _hash_of(request: ClientTokenRequest) -> str:
    return AuthorizationCode.hash_of(request.parameters["device_code"])
