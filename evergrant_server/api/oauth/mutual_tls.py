"""`tls_client_auth`, `self_signed_tls_client_auth`, `x509_svid`: the certificate of the app's TLS connection.

RFC 8705 section 2 and the X.509-SVID standard. The app says its id in `client_id`. The proxy has had the
private key proved, no more: dates, path and names are checked here. The token is bound to the
certificate (RFC 8705 section 3) and doesn't outlive it.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime

from evergrant_server.access.authentication import THUMBPRINT, client_certificate
from evergrant_server.api.oauth.client_authentication import (
    UNPROVEN,
    ClientTokenRequest,
    KeysNeeded,
    ProvenClient,
    invalid_client,
    registered,
)
from evergrant_server.core.access import AppCredential, AuthenticationMethod
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.crypto.client_certificates import (
    NAME_KINDS,
    AppCertificate,
    CertificateRefused,
    UnknownAuthority,
    authorities_of_bundle,
    authorities_of_pem,
    require_name,
    require_svid,
    require_valid,
    verify_path,
)
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import unless_broken


async def authenticate(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """The app of which a credential accepts the client certificate. Raises TokenRefused, KeysNeeded."""
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
    row = await registered(tx, named, *_PROOFS)
    if row is None:
        raise invalid_client(UNPROVEN, named)
    app, credentials = row
    why: list[str] = []
    stale: TrustedIssuer | None = None
    for credential in credentials:
        try:
            await _PROOFS[credential.method](tx, credential, certificate, request.now)
        except CertificateRefused as refused:
            why.append(f"{credential.name}: {refused}")
            stale = refused.issuer if isinstance(refused, _StaleBundle) else stale
            continue
        confirmation = {THUMBPRINT: certificate.thumbprint}
        return ProvenClient(app, credential, certificate.valid_until, confirmation)
    if stale is not None:
        raise KeysNeeded(stale, "; ".join(why), app.id)
    raise invalid_client(UNPROVEN, app.id, recorded="; ".join(why))


async def _tls_client(
    _: Transaction, credential: AppCredential, certificate: AppCertificate, now: datetime
) -> None:
    """Require the credential's name under its authority (RFC 8705 section 2.1)."""
    parameters = credential.parameters
    verify_path(certificate, authorities_of_pem(parameters["ca"]), now)
    (kind,) = (name for name in NAME_KINDS if parameters.get(name) is not None)
    require_name(certificate, kind, parameters[kind])


async def _self_signed(
    _: Transaction, credential: AppCredential, certificate: AppCertificate, now: datetime
) -> None:
    """Require the credential's certificate, of any issuer (RFC 8705 section 2.2)."""
    if certificate.thumbprint != credential.parameters["thumbprint"]:
        raise CertificateRefused("the thumbprint is not the registered one")


async def _svid(
    tx: Transaction, credential: AppCredential, certificate: AppCertificate, now: datetime
) -> None:
    """Require the SPIFFE ID under its trust domain's bundle (draft-ietf-oauth-spiffe-client-auth)."""
    parameters = credential.parameters
    require_svid(certificate, parameters["spiffe_id"])
    if parameters.get("bundle") is not None:
        return verify_path(certificate, authorities_of_pem(parameters["bundle"]), now)
    issuer = await _trust_domain(tx, credential)
    authorities = issuer.usable_authorities(now)
    if authorities is None:
        raise _StaleBundle(issuer, f"the bundle of {issuer.name} can't be used")
    try:
        verify_path(certificate, authorities_of_bundle(authorities), now)
    except UnknownAuthority as refused:
        raise _StaleBundle(issuer, str(refused)) from None


class _StaleBundle(CertificateRefused):
    """A newer bundle of the trust domain may have the authority: a worker may find it."""

    def __init__(self, issuer: TrustedIssuer, why: str) -> None:
        super().__init__(why)
        self.issuer = issuer


async def _trust_domain(tx: Transaction, credential: AppCredential) -> TrustedIssuer:
    """The credential's trust domain. Raises CertificateRefused, with an alarm for a row that was changed by
    hand."""
    id = credential.parameters["issuer_id"]
    issuer = await unless_broken(tx.trusted_issuers.get(credential.tenant, id))
    if issuer is None or not issuer.has_spiffe_id(credential.parameters["spiffe_id"]):
        raise CertificateRefused("its trust domain isn't trusted")
    return issuer


_Proof = Callable[[Transaction, AppCredential, AppCertificate, datetime], Awaitable[None]]
_PROOFS: dict[AuthenticationMethod, _Proof] = {
    AuthenticationMethod.TLS_CLIENT_AUTH: _tls_client,
    AuthenticationMethod.SELF_SIGNED_TLS_CLIENT_AUTH: _self_signed,
    AuthenticationMethod.X509_SVID: _svid,
}
