"""What Evergrant is as an authorization server (RFC 8414), where apps and clients look for it.

OpenID Connect's well-known URL answers with the same document: MCP clients try it when they get no other.
There is no id token behind it.
"""

from typing import Any

from fastapi import APIRouter

from evergrant_server.api.http.call import ApiDep
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.client_credentials import ADVERTISED, ADVERTISED_WITH_MTLS
from evergrant_server.api.oauth.id_jag import PROFILE
from evergrant_server.api.oauth.registration import REGISTRATION_PATH
from evergrant_server.api.oauth.token_endpoint import (
    DEVICE_AUTHORIZATION_PATH,
    GRANTS,
    REVOCATION_PATH,
    TOKEN_PATH,
)
from evergrant_server.core.oauth.requests import SCOPES
from evergrant_server.crypto.client_assertions import ALGORITHMS

router = APIRouter(tags=["oauth"])

AUTHORIZATION_PATH = "/oauth/authorize"
_PUBLIC = ("none",)  # clients of the gateways have no secret


class ServerMetadata(View):
    """RFC 8414 section 2, RFC 8628 section 4, RFC 9207 section 3, and MCP's client id metadata documents."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    revocation_endpoint: str
    registration_endpoint: str
    device_authorization_endpoint: str
    scopes_supported: tuple[str, ...] = SCOPES
    response_types_supported: tuple[str, ...] = ("code",)
    response_modes_supported: tuple[str, ...] = ("query",)
    grant_types_supported: tuple[str, ...] = tuple(GRANTS)
    code_challenge_methods_supported: tuple[str, ...] = ("S256",)
    client_id_metadata_document_supported: bool = True
    authorization_response_iss_parameter_supported: bool = True
    token_endpoint_auth_methods_supported: tuple[str, ...] = (*_PUBLIC, *ADVERTISED)
    authorization_grant_profiles_supported: tuple[str, ...] = (PROFILE,)  # of ID-JAGs, by its section 7.2
    token_endpoint_auth_signing_alg_values_supported: tuple[str, ...] = ALGORITHMS


class CertificateMetadata(ServerMetadata):
    """RFC 8705 sections 3.3 and 5: where apps present certificates, to which their tokens are bound."""

    token_endpoint_auth_methods_supported: tuple[str, ...] = (*_PUBLIC, *ADVERTISED_WITH_MTLS)
    tls_client_certificate_bound_access_tokens: bool = True
    mtls_endpoint_aliases: dict[str, str]


@router.get("/.well-known/openid-configuration")
@router.get("/.well-known/oauth-authorization-server")
async def get_metadata(api: ApiDep) -> CertificateMetadata | ServerMetadata:
    """Where apps and clients get access tokens, and how they may prove their identity (RFC 8414)."""
    issuer, mtls_url = api.settings.public_url, api.settings.mtls_url
    endpoints: dict[str, Any] = {
        "revocation_endpoint": f"{issuer}{REVOCATION_PATH}",
        "authorization_endpoint": f"{issuer}{AUTHORIZATION_PATH}",
        "token_endpoint": f"{issuer}{TOKEN_PATH}",
        "registration_endpoint": f"{issuer}{REGISTRATION_PATH}",
        "device_authorization_endpoint": f"{issuer}{DEVICE_AUTHORIZATION_PATH}",
    }
    if not mtls_url:
        return ServerMetadata(issuer=issuer, **endpoints)
    aliases = {"token_endpoint": f"{mtls_url}{TOKEN_PATH}"}
    return CertificateMetadata(issuer=issuer, mtls_endpoint_aliases=aliases, **endpoints)
