"""`tls_client_auth`, `self_signed_tls_client_auth`, `x509_svid`: the certificate of the app's TLS connection.

RFC 8705 section 2 and the X.509-SVID standard. The app says its id in `client_id`. The proxy has had the
private key proved and nothing else: dates, path and names are checked here. The token is bound to the
certificate (RFC 8705 section 3) and doesn't outlive it.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from evergrant_server.api.http.authentication import THUMBPRINT
from evergrant_server.api.http.client_certificates import client_certificate
from evergrant_server.api.oauth.client_authentication import (
    UNPROVEN,
    ClientTokenRequest,
    ProvenClient,
    invalid_client,
    registered,
)
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.crypto.client_certificates import (
    NAME_KINDS,
    AppCertificate,
    CertificateRefused,
    authorities_of_pem,
    require_name,
    require_svid,
    require_valid,
    verify_path,
)
from evergrant_server.store import Transaction


async def authenticate(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """The app of which a credential accepts the client certificate. Raises TokenRefused."""
    named = request.parameters.get("client_id")
    certificate = client_certificate(request.http)
    if certificate is None:
        raise invalid_client("The request has no assertion, and no client certificate came with it.", named)
    try:
        require_valid(certificate, request.now)
    except CertificateRefused as refused:
        raise invalid_client(f"The client certificate can't be accepted: {refused}.", named) from None
    if named is None:
        raise invalid_client("client_id is missing: the app must name its id.")
    found = await registered(tx, named, *_PROOFS)
    if found is None:
        raise invalid_client(UNPROVEN, named)
    app, credentials = found
    why: list[str] = []
    for credential in credentials:
        try:
            _PROOFS[credential.method](certificate, credential.parameters, request.now)
        except CertificateRefused as refused:
            why.append(f"{credential.name}: {refused}")
            continue
        confirmation = {THUMBPRINT: certificate.thumbprint}
        return ProvenClient(app, credential, certificate.valid_until, confirmation)
    raise invalid_client(UNPROVEN, app.id, recorded="; ".join(why))


def _tls_client(certificate: AppCertificate, parameters: Mapping[str, Any], now: datetime) -> None:
    """One name under one authority (RFC 8705 section 2.1)."""
    verify_path(certificate, authorities_of_pem(parameters["ca"]), now)
    (kind,) = (it for it in NAME_KINDS if parameters.get(it) is not None)
    require_name(certificate, kind, parameters[kind])


def _self_signed(certificate: AppCertificate, parameters: Mapping[str, Any], now: datetime) -> None:
    """One certificate; who issued it doesn't count (RFC 8705 section 2.2)."""
    if certificate.thumbprint != parameters["thumbprint"]:
        raise CertificateRefused("the thumbprint is not the registered one")


def _svid(certificate: AppCertificate, parameters: Mapping[str, Any], now: datetime) -> None:
    """One SPIFFE ID under its trust domain's bundle (draft-ietf-oauth-spiffe-client-auth)."""
    verify_path(certificate, authorities_of_pem(parameters["bundle"]), now)
    require_svid(certificate, parameters["spiffe_id"])


_PROOFS: dict[AuthenticationMethod, Callable[[AppCertificate, Mapping[str, Any], datetime], None]] = {
    AuthenticationMethod.TLS_CLIENT_AUTH: _tls_client,
    AuthenticationMethod.SELF_SIGNED_TLS_CLIENT_AUTH: _self_signed,
    AuthenticationMethod.X509_SVID: _svid,
}
