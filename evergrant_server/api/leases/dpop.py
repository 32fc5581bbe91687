"""DPoP proofs (RFC 9449) for apps that may lease a bound token. `LeaseIssuer` checks the lease.

The private key never leaves the API. No proof is created for an endpoint of the provider's
authorization server (ADR 0017).
"""

from collections.abc import Iterator
from posixpath import normpath
from urllib.parse import unquote, urlsplit

from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.problems import invalid_request, require_found
from evergrant_server.api.integrations.definitions import integration_spec
from evergrant_server.api.leases.models import ProofBody
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.store import LeaseRow
from providers.definition.templates import integration_endpoints
from providers.requests.dpop import dpop_proof, origin_of

_RESOURCES = ("userinfo_endpoint",)  # protected ones (OpenID Connect Core 1.0 section 5.3)


async def require_provable(api: ApiContext, row: LeaseRow, wanted: ProofBody) -> None:
    """Raise Failure INVALID_REQUEST for an unbound token or an endpoint of the authorization server."""
    if row.grant is None or row.grant.token_type != DPOP_TOKEN_TYPE:
        raise invalid_request("connection_id", "Its tokens are not bound to a key.")
    async with api.store.read() as tx:
        integration = require_found(await tx.integrations.get(row.tenant, row.integration_id))
        spec = await integration_spec(tx, api.registry, integration)
    endpoints = integration_endpoints(spec, integration, row.grant.metadata)
    if comparable_location(wanted.proved_url) in {
        comparable_location(url) for url in _endpoint_urls(endpoints)
    }:
        detail = "No proof is created for an endpoint of the provider's authorization server."
        raise invalid_request("htu", detail)


async def create_proof(api: ApiContext, row: LeaseRow, wanted: ProofBody) -> str:
    """The proof, with the hash of the token that the row holds. Its record is committed by now.

    Raises Failure CONSENT_REQUIRED when the grant is gone, SEAL_BROKEN, KEY_UNAVAILABLE.
    """
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
        access_token=row.open_access_token(api.ring),
    )


def _endpoint_urls(endpoints: Endpoints) -> Iterator[str]:
    yield from endpoints.mtls_aliases.values()
    for name, value in endpoints:
        if name.endswith("_endpoint") and name not in _RESOURCES and isinstance(value, str):
            yield value


def comparable_location(url: str) -> tuple[str, str, str]:
    """Host, port and path, normalized as the most lenient server would compare them."""
    parts, port = urlsplit(url), origin_of(url).rpartition(":")[2]
    path = normpath("/" + unquote(unquote(parts.path)).lstrip("/"))
    return (parts.hostname or "").rstrip("."), port, path.casefold()
