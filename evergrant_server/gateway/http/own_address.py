"""Refuses what a page of another site, or a name that was made to lead here, has sent (DNS rebinding)."""

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.proxy.headers import values_of


def require_own_address(request: Request, public_url: str) -> None:
    """Check Origin and Host of a request to an MCP server (MCP, basic/transports).

    Raises Failure NOT_PERMITTED for pages of other origins, INVALID_REQUEST for other hosts.
    """
    ours = urlsplit(public_url)
    own = f"{ours.scheme}://{ours.netloc}".lower()
    if any(it.lower() != own.encode() for it in values_of(b"origin", request.headers.raw)):
        raise Failure(ErrorCode.NOT_PERMITTED, "The Origin isn't the gateway's.")
    host = request.headers.get("host", "").lower()
    if host != ours.netloc.lower() and not _is_address(host):
        why = f"The Host isn't that of {own}, which EVERGRANT_GATEWAY_PUBLIC_URL sets."
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="Host")


def _is_address(host: str) -> bool:
    """An IP address or localhost: no name that could be made to point here."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
