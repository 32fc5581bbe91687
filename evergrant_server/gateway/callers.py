"""Who calls the gateway: at a resource, in an open stream as the store says now, and from which site's page.

A 401 tells clients where the resource's metadata is (RFC 9728 section 5.1).
"""

import ipaddress
import re
from dataclasses import replace
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Scope

from evergrant_server.access.authentication import RESOURCE
from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import CredentialId
from evergrant_server.gateway.proxy.headers import values_of

SCOPES = ("mcp",)  # of every resource
_WELL_KNOWN = b"/.well-known/oauth-protected-resource"
_RESOURCE_PATH = re.compile(rb"/mcp(?:/con_[0-9a-z]{22})?\Z")
# an access token of a client is read anew each time, until its end (RFC 8707)
_ASKED_EACH_TIME = (AuthenticationMethod.API_KEY, AuthenticationMethod.RESOURCE_TOKEN)


async def gateway_caller(api: ApiContext, request: Request, resource: str) -> tuple[Caller, bool]:
    """The caller of this resource, and whether it comes from the cache: `Authenticator.authenticate_cached`
    with access tokens of clients, which are for one resource (RFC 8707 section 2).

    The request keeps the resource: who authenticates it again accepts the same token, and a refusal's
    challenge names the resource's metadata. Raises Failure.
    """
    request.scope[RESOURCE] = resource
    return await api.authenticator.authenticate_cached(request)


async def gateway_caller_now(api: ApiContext, request: Request, resource: str) -> Caller:
    """As `gateway_caller`, never from the cache: for what is answered without the lease decision."""
    request.scope[RESOURCE] = resource
    return await api.authenticator.authenticate(request)


def challenge_of(scope: Scope, gateway_url: str) -> str | None:
    """`WWW-Authenticate` of a 401 at the resource that the request is for; None: at no resource."""
    resource = scope.get(RESOURCE)
    if resource is None:
        return None
    metadata = f"{gateway_url}{_WELL_KNOWN.decode()}{resource.removeprefix(gateway_url)}"
    presented = any(name == b"authorization" for name, _ in scope["headers"])
    error = ', error="invalid_token"' if presented else ""  # RFC 6750 section 3.1
    return f'Bearer resource_metadata="{metadata}", scope="{" ".join(SCOPES)}"{error}'


def resource_metadata(path: bytes, gateway_url: str, issuer: str) -> dict[str, object] | None:
    """The document at this path (RFC 9728 section 3), None for any other path. It doesn't tell whether the
    connection exists."""
    if not path.startswith(_WELL_KNOWN):
        return None
    resource = path.removeprefix(_WELL_KNOWN)
    if not _RESOURCE_PATH.match(resource):
        return None
    return {
        "resource": f"{gateway_url}{resource.decode()}",
        "authorization_servers": [issuer],
        "scopes_supported": list(SCOPES),
        "bearer_methods_supported": ["header"],
    }


async def current_caller(api: ApiContext, request: Request, began_as: Caller) -> Caller:
    """The app and its permits. Raises Failure when its key, credential, app or tenant doesn't count any more.

    An access token of an app is for ten minutes, and a stream that began with it may go on while the
    credential is there: only its age is overlooked. A delegation's stream ends with it.
    """
    try:
        return await api.authenticator.authenticate(request)
    except Failure:
        credential = began_as.credential
        if began_as.delegated is not None:
            raise
        if credential.method in _ASKED_EACH_TIME or api.clock.now() < credential.valid_until:
            raise
    async with api.store.read() as tx:
        await tx.tenants.require_enabled(began_as.tenant)
        app = await tx.access.app(began_as.tenant, began_as.app.id)
        credential_now = await tx.credentials.get(began_as.tenant, CredentialId(credential.id))
        if app is None or app.disabled or credential_now is None:
            raise Failure(ErrorCode.UNAUTHENTICATED)
        permits = await tx.access.permits_of(app)
        if app.is_agent:
            await tx.agents.require_active(app, api.clock.now())
    return replace(began_as, app=app, permits=tuple(permits))


def require_own_address(request: Request, public_url: str) -> None:
    """Check Origin and Host of a request to an MCP server (MCP, basic/transports).

    Raises Failure NOT_PERMITTED for pages of other origins, INVALID_REQUEST for other hosts.
    """
    ours = urlsplit(public_url)
    origin = f"{ours.scheme}://{ours.netloc}".lower()
    if any(value.lower() != origin.encode() for value in values_of(b"origin", request.headers.raw)):
        raise Failure(ErrorCode.NOT_PERMITTED, "The Origin isn't the gateway's.")
    host = request.headers.get("host", "").lower()
    if host != ours.netloc.lower() and not _is_address(host):
        why = f"The Host isn't that of {origin}, which EVERGRANT_GATEWAY_PUBLIC_URL sets."
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="Host")


def _is_address(host: str) -> bool:
    """An IP address or localhost: no name that could be made to point here."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
