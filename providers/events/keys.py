"""Fetches the public keys of a transmitter or an issuer (RFC 7517) through the egress policy."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.workloads.issuer import X509_SVID
from evergrant_server.egress import Egress, why_unreachable
from providers.requests.request_format import STANDARD_HEADERS
from providers.responses.raw_reply import UnreadableBody, parse_body

_MAX_BYTES = 256 * 1024  # bytes
_MAX_KEYS = 50
_PUBLIC_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y")}
_COMMON_MEMBERS = ("kty", "kid", "use", "alg")
_SIGNATURES = (None, "sig")
_JWT_SVID = ("jwt-svid",)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{1,16384}={0,2}\Z")  # RFC 7517 section 4.7
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=\"?([0-9]{1,9})\"?(?:[\s,]|$)", re.IGNORECASE)


class KeySet(NamedTuple):
    """Public keys, and how long they may be cached by what their issuer says (RFC 9111 section 5.2.2.1)."""

    keys: tuple[dict[str, Any], ...]
    max_age: timedelta | None


async def fetch_keys(egress: Egress, url: str, whose: str = "the transmitter") -> tuple[dict[str, Any], ...]:
    """The document's public keys for signatures; messages say `whose`.

    Raises Failure EGRESS_REFUSED, PROVIDER_UNREACHABLE, PROVIDER_ERROR or DISCOVERY_FAILED.
    """
    return parse_jwks((await _fetch(egress, url, f"{whose}'s keys")).content, whose)


async def fetch_issuer_keys(egress: Egress, issuer: str, jwks_uri: str | None) -> KeySet:
    """The keys of an OpenID Connect issuer; without `jwks_uri`, where its metadata says (Discovery 1.0
    section 4). Raises as `fetch_keys`."""
    if jwks_uri is None:
        url = issuer.removesuffix("/") + "/.well-known/openid-configuration"
        document = _parse((await _fetch(egress, url, "the issuer's metadata")).content) or {}
        if document.get("issuer") != issuer:  # section 4.3
            raise Failure(ErrorCode.DISCOVERY_FAILED, "the issuer's metadata names another issuer, or none")
        jwks_uri = document.get("jwks_uri")
        if not isinstance(jwks_uri, str):
            raise Failure(ErrorCode.DISCOVERY_FAILED, "the issuer's metadata names no jwks_uri")
    response = await _fetch(egress, jwks_uri, "the issuer's keys")
    return KeySet(parse_jwks(response.content, "the issuer"), _max_age(response))


async def fetch_bundle_keys(egress: Egress, url: str) -> KeySet:
    """The keys of a trust domain's bundle (SPIFFE Trust Domain and Bundle section 4): those for JWT-SVIDs,
    and the authorities of X.509-SVIDs, with `use` and `x5c` alone. Raises as `fetch_keys`."""
    response = await _fetch(egress, url, "the trust domain's bundle")
    keys = _parse_keys(response.content, "the trust domain", _svid_key)
    hint = (_parse(response.content) or {}).get("spiffe_refresh_hint")  # section 4.1.2, seconds
    cacheable = hint if isinstance(hint, int) and 0 < hint < 10**9 else None
    return KeySet(keys, timedelta(seconds=cacheable) if cacheable else _max_age(response))


async def _fetch(egress: Egress, url: str, name: str) -> httpx2.Response:
    async with egress.client(headers=STANDARD_HEADERS) as http:
        try:
            response = await http.get(url)
        except httpx2.InvalidURL:
            raise Failure(ErrorCode.EGRESS_REFUSED, f"the URL of {name} is none") from None
        except httpx2.TransportError as error:
            detail = f"{name} could not be fetched: {why_unreachable(error)}"
            raise Failure(ErrorCode.PROVIDER_UNREACHABLE, detail) from None
    if response.status_code != 200:
        raise Failure(ErrorCode.PROVIDER_ERROR, f"{name}: status {response.status_code}")
    return response


def _max_age(response: httpx2.Response) -> timedelta | None:
    match = _MAX_AGE.search(response.headers.get("cache-control", ""))
    return None if match is None else timedelta(seconds=int(match[1]))


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        return parse_body(content) if len(content) <= _MAX_BYTES else None
    except UnreadableBody:
        return None


def parse_jwks(
    content: bytes, whose: str = "the transmitter", uses: tuple[str | None, ...] = _SIGNATURES
) -> tuple[dict[str, Any], ...]:
    """The keys of a JWK set with one of these uses. Raises Failure DISCOVERY_FAILED for an invalid or
    empty set."""
    return _parse_keys(content, whose, lambda key: _public_key(key, uses))


def _parse_keys(
    content: bytes, whose: str, read: Callable[[Any], dict[str, Any] | None]
) -> tuple[dict[str, Any], ...]:
    document = _parse(content)
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise Failure(ErrorCode.DISCOVERY_FAILED, f"{whose}'s keys are not a JWK set")
    usable = [public for key in keys if (public := read(key)) is not None]
    kept = tuple(usable[:_MAX_KEYS])
    if not kept:
        raise Failure(ErrorCode.DISCOVERY_FAILED, f"{whose}'s JWK set has no usable key")
    return kept


def _public_key(key: Any, uses: tuple[str | None, ...]) -> dict[str, Any] | None:
    """The public members of an RSA or EC key; None for symmetric keys and keys for another use."""
    if not isinstance(key, dict) or key.get("use") not in uses:
        return None
    needed = _PUBLIC_MEMBERS.get(str(key.get("kty")))
    if needed is None or any(not isinstance(key.get(name), str) for name in needed):
        return None
    return {name: key[name] for name in (*_COMMON_MEMBERS, *needed) if isinstance(key.get(name), str)}


def _svid_key(key: Any) -> dict[str, Any] | None:
    """A key for JWT-SVIDs without its `use`, or the certificate of an authority (section 4.2.2)."""
    public = _public_key(key, _JWT_SVID)
    if public is not None:
        return {name: value for name, value in public.items() if name != "use"}
    chain = key.get("x5c") if isinstance(key, dict) and key.get("use") == X509_SVID else None
    if isinstance(chain, list) and len(chain) == 1 and isinstance(chain[0], str) and _BASE64.match(chain[0]):
        return {"use": X509_SVID, "x5c": chain}
    return None
