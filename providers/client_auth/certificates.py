"""Checks a client certificate and its key before they are stored (RFC 8705 section 2). Pure."""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from evergrant_server.core.connections.client_certificate import ClientCertificate
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret

_MAX_CERTIFICATES = 10


def parse_client_certificate(certificate: str, private: Secret, now: datetime) -> ClientCertificate:
    """A certificate chain and its key.

    Raises Failure INVALID_REQUEST (field `client_certificate`) when they aren't PEM, have expired, or
    don't belong together.
    """
    try:
        chain = x509.load_pem_x509_certificates(certificate.encode())
    except ValueError:
        raise _unusable_certificate("the certificate is not PEM") from None
    if len(chain) > _MAX_CERTIFICATES:
        raise _unusable_certificate(f"more than {_MAX_CERTIFICATES} certificates")
    try:
        key = load_pem_private_key(private.reveal().encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # or encrypted
        raise _unusable_certificate("the private key is not PEM without a password") from None
    try:
        ours = chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable_certificate("the certificate's key has an unknown type") from None
    if key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != ours:
        raise _unusable_certificate("the private key is not the first certificate's")
    ends = min(each.not_valid_after_utc for each in chain)
    if ends <= now:
        raise _unusable_certificate("a certificate of the chain has expired")
    text = "".join(each.public_bytes(Encoding.PEM).decode() for each in chain)
    return ClientCertificate(certificate=text, private=private, expires_at=ends)


def _unusable_certificate(why: str) -> Failure:
    return Failure(
        ErrorCode.INVALID_REQUEST, f"The client certificate can't be used: {why}.", field="client_certificate"
    )
