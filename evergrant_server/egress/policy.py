"""Where Evergrant may connect: public hosts over https, and exceptions that an operator configured. Pure.

A host may be written in any notation the resolver accepts (decimal, octal, hexadecimal,
IPv4 inside IPv6): the check applies to the resulting address.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure, allowance

_HOST = re.compile(r"[a-z0-9.\-_]+|[0-9a-f:.]+")
SAFE_PORTS = frozenset({443, 8443})

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Only that network's translator knows where the IPv4 address is in it (RFC 8215, RFC 6052 section 2.2).
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse_entry(entry: str) -> str:
    host, colon, port = entry.strip().lower().rpartition(":")
    host = host.strip("[]")
    if not colon or not _HOST.fullmatch(host) or not port.isdigit() or not 0 < int(port) < 65536:
        raise Failure(
            ErrorCode.INVALID_REQUEST,
            f"egress allowance {entry!r} is not host:port",
            field="EVERGRANT_EGRESS_ALLOW",
        )
    return _host_port(host, int(port))


@dataclass(frozen=True)
class EgressPolicy:
    """The rule for every outbound URL.

    Without an allowance: https only, ports 443 and 8443, public addresses only. Each entry
    of `allow` (`host:port`) is an exception: for exactly that host and port, plain http and
    private addresses are accepted too. Raises Failure INVALID_REQUEST for a bad entry.

    A refusal that an allowance ends says which, with those that are there already; `start_command` is how
    this installation is started. `ca_file` has the authorities that are trusted beside the machine's.
    """

    allow: tuple[str, ...] = ()
    start_command: str = ""
    ca_file: Path | None = None
    _allowed: frozenset[str] = field(init=False, repr=False, default=frozenset())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_allowed", frozenset(_parse_entry(entry) for entry in self.allow))

    def allows(self, host: str, port: int) -> bool:
        """True when the operator made this exact host and port an exception."""
        return _host_port(host.lower().strip("[]"), port) in self._allowed

    def check_url(self, url: str | httpx2.URL) -> None:
        """Refuse a URL by its scheme, host and port, without resolving it.

        Raises Failure EGRESS_REFUSED; its detail names scheme, host and port, never path or query.
        """
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError, ValueError):
            raise Failure(ErrorCode.EGRESS_REFUSED, "not a URL") from None
        if parsed.scheme not in ("https", "http") or not parsed.host:
            raise Failure(ErrorCode.EGRESS_REFUSED, f"scheme {parsed.scheme[:16]!r} is not https")
        host, port = parsed.host, _port(parsed)
        if parsed.userinfo:
            why = f"a URL of {_host_port(host, port)} has a user name or password in it"
            raise Failure(ErrorCode.EGRESS_REFUSED, why, host=host)
        if self.allows(host, port):
            return
        if parsed.scheme != "https":
            raise self.refusal(host, port, "is not https")
        if port not in SAFE_PORTS:
            raise self.refusal(host, port, "has another port than 443 and 8443")

    def check_endpoint(self, url: str) -> None:
        """Refuse a URL that will be requested later, without resolving it. Includes `check_url`.

        A host that is an address must be public; a name's addresses are checked at each request.
        Raises Failure EGRESS_REFUSED.
        """
        self.check_url(url)
        parsed = httpx2.URL(url)
        if self.allows(parsed.host, _port(parsed)):
            return
        host = parsed.host.rstrip(".").lower()
        address = literal_address(host)
        reason = address_refusal(address) if address is not None else None
        if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
            reason = "a loopback address"
        if reason:
            raise self.refusal(parsed.host, _port(parsed), f"is {reason}")

    def refusal(self, host: str, port: int, why: str) -> Failure:
        """The failure of a request to this host, with the setting that would allow it."""
        entry = _host_port(host.lower().strip("[]"), port)
        detail = f"{_host_port(host, port)} {why}{allowance(entry, self.allow, self.start_command)}"
        return Failure(ErrorCode.EGRESS_REFUSED, detail, host=host)


def _port(url: httpx2.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address embeds, if any."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return None


def address_refusal(text: str) -> str | None:
    """The reason to refuse this address, or None when it is public.

    `text` is an address as the resolver prints it, with or without an IPv6 zone.
    """
    try:
        address = ipaddress.ip_address(text.split("%", 1)[0])
    except ValueError:
        return "not an address"
    if isinstance(address, IPv6Address):
        if address.teredo is not None:
            return "a Teredo tunnel address"
        if address in _LOCAL_NAT64:
            return "an address of a local NAT64 translator"
        embedded = _embedded_ipv4(address)
        if embedded is not None:
            return _non_public_kind(embedded)
    return _non_public_kind(address)


def literal_address(host: str) -> str | None:
    """The address that a URL's host denotes without a resolver (`127.1`, `0x7f000001`), or None."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def _non_public_kind(address: IPv4Address | IPv6Address) -> str | None:
    if address.is_loopback:
        return "a loopback address"
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_reserved or (isinstance(address, IPv6Address) and address.is_site_local):
        return "a reserved address"
    if address.is_private or not address.is_global:
        return "a private address"
    return None
