"""Which addresses belong to the public internet. Pure.

A host may be written in any notation the resolver accepts (decimal, octal, hexadecimal,
IPv4 inside IPv6): the check applies to the resulting address.
"""

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Only that network's translator knows where the IPv4 address is in it (RFC 8215, RFC 6052 section 2.2).
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


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
