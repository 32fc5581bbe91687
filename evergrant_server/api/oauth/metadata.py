"""`/.well-known/oauth-authorization-server`: what Evergrant is as an authorization server (RFC 8414)."""

from typing import Any

from fastapi import APIRouter

from evergrant_server.api.http.call import ApiDep
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.grants import GRANTS
from evergrant_server.api.oauth.methods import ADVERTISED, ADVERTISED_WITH_MTLS
from evergrant_server.crypto.client_assertions import ALGORITHMS

router = APIRouter(tags=["oauth"])

TOKEN_PATH, REVOCATION_PATH = "/oauth/token", "/oauth/revoke"


class ServerMetadata(View):
    """RFC 8414 section 2. There is no authorization endpoint, so there are no response types."""

    issuer: str
    token_endpoint: str
    revocation_endpoint: str
    response_types_supported: tuple[str, ...] = ()
    grant_types_supported: tuple[str, ...] = tuple(GRANTS)
    token_endpoint_auth_methods_supported: tuple[str, ...] = ADVERTISED
    token_endpoint_auth_signing_alg_values_supported: tuple[str, ...] = ALGORITHMS


class CertificateMetadata(ServerMetadata):
    """RFC 8705 sections 3.3 and 5: where apps present certificates, to which their tokens are bound."""

    token_endpoint_auth_methods_supported: tuple[str, ...] = ADVERTISED_WITH_MTLS
    tls_client_certificate_bound_access_tokens: bool = True
    mtls_endpoint_aliases: dict[str, str]


@router.get("/.well-known/oauth-authorization-server")
async def get_metadata(api: ApiDep) -> CertificateMetadata | ServerMetadata:
    """Where apps get access tokens, and how they may prove their identity (RFC 8414)."""
    issuer, mtls_url = api.settings.public_url, api.settings.mtls_url
    endpoints: dict[str, Any] = {
        "token_endpoint": f"{issuer}{TOKEN_PATH}",
        "revocation_endpoint": f"{issuer}{REVOCATION_PATH}",
    }
    if not mtls_url:
        return ServerMetadata(issuer=issuer, **endpoints)
    aliases = {"token_endpoint": f"{mtls_url}{TOKEN_PATH}"}
    return CertificateMetadata(issuer=issuer, mtls_endpoint_aliases=aliases, **endpoints)
