"""Why an issuer's metadata didn't arrive, in words that name what an admin or the operator corrects."""

import ssl
from urllib.parse import urlsplit

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress import DOES_NOT_RESOLVE


def issuer_unreachable(issuer: str, error: httpx2.TransportError) -> Failure:
    """Why no document arrived: what stays so is DISCOVERY_FAILED, the rest may end by itself."""
    server, cause = urlsplit(issuer).netloc, _tls_error(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = (
            f"the certificate of {server} is not trusted ({cause.verify_message or cause.reason}): start "
            "with its authority's certificates in SSL_CERT_FILE"
        )
        return Failure(ErrorCode.DISCOVERY_FAILED, why, issuer=issuer)
    if cause is not None:
        why = f"{server} doesn't answer in TLS: is the issuer http://{server}?"
        return Failure(ErrorCode.DISCOVERY_FAILED, why, issuer=issuer)
    if DOES_NOT_RESOLVE in str(error):
        why = f"{server} has no address in DNS: is the issuer's name right?"
    else:
        why = f"{server} could not be reached ({type(error).__name__}): is it running?"
    return Failure(ErrorCode.PROVIDER_UNREACHABLE, why, issuer=issuer)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error behind a transport's one."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error
