"""Origins (RFC 6454 section 4): where a token may be sent, and which hosts are this machine."""

from collections.abc import Iterable
from ipaddress import ip_address

import httpx2

from evergrant.errors import BadRequest

Origin = tuple[str, str, int]
_PORTS = {"http": 80, "https": 443}


def origin_of(url: httpx2.URL) -> Origin:
    """Scheme, host and port; the scheme's default port where the URL names none."""
    return (url.scheme, url.host, url.port or _PORTS.get(url.scheme, 0))


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_origins(origins: str | Iterable[str]) -> frozenset[Origin]:
    """Where a token may be sent.

    Raises BadRequest for an empty list, a URL that is no origin, and plain http to another machine.
    """
    given = (origins,) if isinstance(origins, str) else tuple(origins)
    if not given:
        raise BadRequest("no origin is allowed", code="origin_invalid", repair="Name the API's origin.")
    return frozenset(_checked(origin) for origin in given)


def _checked(origin: str) -> Origin:
    try:
        url = httpx2.URL(origin)
    except (httpx2.InvalidURL, TypeError):
        url = httpx2.URL("")
    rest = url.path.strip("/") or url.query or url.fragment or url.userinfo
    secure = url.scheme == "https" or (url.scheme == "http" and is_loopback(url.host))
    if rest or not url.host or not secure:
        raise BadRequest(
            "an origin is https://host or https://host:port, without a path",
            code="origin_invalid",
            repair="Name the API's origin; plain http is for this machine only.",
        )
    return origin_of(url)
