"""Fetches the public keys of a transmitter or an issuer (RFC 7517) through the egress policy."""

from typing import Any

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress import Egress
from providers.requests.request_format import STANDARD_HEADERS
from providers.responses.raw_reply import UnreadableBody, parse_body

_MAX_BYTES = 256 * 1024  # bytes
_MAX_KEYS = 50
_PUBLIC_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y")}
_COMMON_MEMBERS = ("kty", "kid", "use", "alg")


async def fetch_keys(egress: Egress, url: str, whose: str = "the transmitter") -> tuple[dict[str, Any], ...]:
    """The document's public keys for signatures; messages say `whose`.

    Raises Failure EGRESS_REFUSED, PROVIDER_UNREACHABLE, PROVIDER_ERROR or DISCOVERY_FAILED.
    """
    async with egress.client(headers=STANDARD_HEADERS) as http:
        try:
            response = await http.get(url)
        except httpx2.InvalidURL:
            raise Failure(ErrorCode.EGRESS_REFUSED, "jwks_uri is not a URL") from None
        except httpx2.TransportError as error:
            detail = f"{whose}'s keys could not be fetched ({type(error).__name__})"
            raise Failure(ErrorCode.PROVIDER_UNREACHABLE, detail) from None
    if response.status_code != 200:
        raise Failure(ErrorCode.PROVIDER_ERROR, f"{whose}'s keys: status {response.status_code}")
    return parse_jwks(response.content, whose)


def parse_jwks(content: bytes, whose: str = "the transmitter") -> tuple[dict[str, Any], ...]:
    """The usable keys of a JWK set. Raises Failure DISCOVERY_FAILED for an invalid or empty set."""
    try:
        document = parse_body(content) if len(content) <= _MAX_BYTES else None
    except UnreadableBody:
        document = None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise Failure(ErrorCode.DISCOVERY_FAILED, f"{whose}'s keys are not a JWK set")
    found = tuple(public for key in keys[:_MAX_KEYS] if (public := _public_key(key)) is not None)
    if not found:
        raise Failure(ErrorCode.DISCOVERY_FAILED, f"{whose}'s JWK set has no usable key")
    return found


def _public_key(key: Any) -> dict[str, Any] | None:
    """The public members of an RSA or EC key; None for symmetric keys and keys for encryption."""
    if not isinstance(key, dict) or key.get("use") not in (None, "sig"):
        return None
    needed = _PUBLIC_MEMBERS.get(str(key.get("kty")))
    if needed is None or any(not isinstance(key.get(name), str) for name in needed):
        return None
    return {name: key[name] for name in (*_COMMON_MEMBERS, *needed) if isinstance(key.get(name), str)}
