"""Who calls a resource of the gateway, what a 401 tells clients (RFC 9728 section 5.1), and the document to
which it leads."""

import re

from starlette.requests import Request
from starlette.types import Scope

from evergrant_server.access.authentication import RESOURCE
from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext

SCOPES = ("mcp",)  # of every resource
_WELL_KNOWN = b"/.well-known/oauth-protected-resource"
_RESOURCE_PATH = re.compile(rb"/mcp(?:/con_[0-9a-z]{22})?\Z")


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
