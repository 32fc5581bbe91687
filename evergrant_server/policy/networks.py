"""Whom and whence a permit names: subjects, and the networks that a caller may come from. Pure.

An IPv4 address inside IPv6 (`::ffff:10.0.0.7`, RFC 4291 section 2.5.5.2) is the IPv4 address.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_MAPPED_BITS = 96  # of `::ffff:0:0/96`
_KEPT = 4096  # texts are read again with each request
WILDCARD = "*"


@lru_cache(_KEPT)
def parse_address(text: str) -> Address:
    """The address. Raises ValueError, also for one with a zone (`fe80::1%eth0`)."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which only its own host knows")
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


@lru_cache(_KEPT)
def parse_network(text: str) -> Network:
    """A network in CIDR notation, or one address. Raises ValueError, also for bits behind the prefix."""
    address, slash, prefix = text.partition("/")
    if "%" in text or (slash and not (prefix.isascii() and prefix.isdigit())) or address != address.strip():
        raise ValueError(f"{text!r} is no network: write for example 10.1.0.0/16")
    network = ip_network(text, strict=False)
    if slash and str(network.network_address) != str(ip_address(address)):
        raise ValueError(f"{text} has host bits set: write {network}, or {address} alone")
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


_SHOWN_BITS = {4: 24, 6: 48}  # of an address: its neighbours are one network


def network_of(text: str) -> str | None:
    """The network of an address, of which a caller may have many; `private` for one that isn't public. None:
    no address."""
    try:
        address = parse_address(text)
    except ValueError:
        return None
    if not address.is_global:
        return "private"
    return str(ip_network((address, _SHOWN_BITS[address.version]), strict=False))


def network_texts(texts: Iterable[str]) -> tuple[str, ...]:
    """The networks in their usual notation, each once. Raises ValueError."""
    return tuple(dict.fromkeys(str(parse_network(text)) for text in texts))


def is_within(address: Address, networks: Sequence[str]) -> bool:
    """True for an address of one of the networks. Raises ValueError for a text that is no network."""
    return any(address in parse_network(network) for network in networks)


def caller_address(peer: str | None, forwarded: Sequence[str], proxies: Sequence[str]) -> str | None:
    """The address of a caller, or None when it isn't known.

    `peer` is the other end of the connection, `forwarded` the values of `X-Forwarded-For`. The header counts
    only from a peer of `proxies`: of its addresses, the last that is no proxy itself. None: a proxy without
    the header, the header of another peer (a proxy that isn't configured, or a forged one), no address.
    """
    if not forwarded and not proxies:
        return peer
    try:
        if peer is None or is_within(parse_address(peer), proxies) != bool(forwarded):
            return None
        if not forwarded:
            return peer
        hops = [hop.strip() for hop in ",".join(forwarded).split(",")]
        for hop in reversed(hops):
            if not is_within(parse_address(hop), proxies):
                return hop
        return hops[0]
    except ValueError:
        return None


def names_subject(subjects: tuple[str, ...], subject: str | None) -> bool:
    """A subject that ends in `*` names every subject that begins with what is before it."""
    if WILDCARD in subjects:
        return True
    return subject is not None and (subject in subjects or subject.startswith(_beginnings(subjects)))


@lru_cache(4096)
def _beginnings(subjects: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(subject[:-1] for subject in subjects if subject.endswith(WILDCARD))


def comes_from(sources: tuple[str, ...], address: str | None, *, otherwise: bool) -> bool:
    """Whether the address is in one of the networks; `otherwise` where it can't be told."""
    if address is None:
        return otherwise
    try:
        return is_within(parse_address(address), sources)
    except ValueError:
        return otherwise
