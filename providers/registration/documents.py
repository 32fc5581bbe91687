"""Fetches a metadata document: of an issuer (RFC 8414) or of a protected resource (RFC 9728)."""

import ssl
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress import DOES_NOT_RESOLVE, tls_error, why_unreachable
from providers.responses.raw_reply import UnreadableBody, parse_body

MAX_URL_LENGTH = 2048
_MAX_SHOWN = 200
_MAX_DOCUMENT_BYTES = 256 * 1024  # usual documents have a few thousand


async def fetch_document(
    http: httpx2.AsyncClient, url: str, subject: str, missing: list[str]
) -> dict[str, Any] | None:
    """The document about `subject`, an issuer or a resource; or None with the reason added to `missing`.

    Raises the Failure of `issuer_unreachable`, PROVIDER_ERROR when a later try may succeed, EGRESS_REFUSED.
    """
    path = urlsplit(url).path
    try:
        response = await http.get(url)
    except httpx2.TransportError as error:
        raise issuer_unreachable(subject, error) from None
    if response.status_code == 429 or response.status_code >= 500:
        detail = f"{path} replied with status {response.status_code}"
        raise Failure(ErrorCode.PROVIDER_ERROR, detail, issuer=subject)
    if response.status_code != 200:
        missing.append(f"{path} replied with status {response.status_code}")
        return None
    try:
        if len(response.content) > _MAX_DOCUMENT_BYTES:
            raise UnreadableBody(f"a body of {len(response.content)} bytes")
        return parse_body(response.content, "json")
    except UnreadableBody as why:
        missing.append(f"{path} has {why}")  # often an HTML page
        return None


def shown(named: Any) -> str:
    """`: VALUE` of what a document names, for the admin: often the same with or without a final slash."""
    plain = isinstance(named, str) and named.isprintable() and len(named) <= _MAX_SHOWN
    return f": {named}" if plain else ""


def fail(subject: str, why: str) -> NoReturn:
    """Raise Failure DISCOVERY_FAILED about an issuer or a resource."""
    raise Failure(ErrorCode.DISCOVERY_FAILED, f"{subject or 'discovery'}: {why}", issuer=subject[:200])


def issuer_unreachable(issuer: str, error: httpx2.TransportError) -> Failure:
    """Why no document arrived: what stays so is DISCOVERY_FAILED, the rest may end by itself."""
    why, tls = why_unreachable(error), tls_error(error)
    if isinstance(tls, ssl.SSLCertVerificationError):
        why += ": start with its authority's certificates in EVERGRANT_TRUSTED_CA_FILE"
    elif tls is not None:
        why += f": is the issuer http://{urlsplit(issuer).netloc}?"
    elif DOES_NOT_RESOLVE in str(error):
        why += ": is the issuer's name right?"
    else:
        why += ": is it running?"
    code = ErrorCode.PROVIDER_UNREACHABLE if tls is None else ErrorCode.DISCOVERY_FAILED
    return Failure(code, why, issuer=issuer)
