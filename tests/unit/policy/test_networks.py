"""Networks of callers, and the address of a caller behind proxies."""

import pytest

from evergrant_server.policy.networks import caller_address, network_texts, parse_network


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("10.1.2.3", "10.1.0.0/16", "10.1.2.3/32"), ("10.1.2.3/32", "10.1.0.0/16")),
        (("2001:DB8:0::/32",), ("2001:db8::/32",)),
        (("::ffff:10.1.0.0/112", "::ffff:10.9.9.9"), ("10.1.0.0/16", "10.9.9.9/32")),
        (("::ffff:0:0/96",), ("0.0.0.0/0",)),
        (("::/0",), ("::/0",)),
    ],
)
def test_networks_are_kept_in_their_usual_notation(given, kept):
    assert network_texts(given) == kept


@pytest.mark.parametrize(
    "text",
    ["", "*", "10.1.2.3/16", "10.1.0.0/33", "10.1.0.0/255.255.0.0", "10.1.0.0/", "10.01.0.0/16", "10.1",
     " 10.1.2.3",
     "fe80::1%eth0", "fe80::%1/64", "example.com", "10.1.0.0/١٦", "10.1.0.0/-1", "1/8"],
)  # fmt: skip
def test_what_is_no_network_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_network(text)


PROXIES = ("10.0.0.0/24", "::1/128")


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "address"),
    [
        ("192.0.2.1", [], (), "192.0.2.1"),
        ("192.0.2.1", [], PROXIES, "192.0.2.1"),
        (None, [], (), None),  # a unix socket
        (None, ["192.0.2.1"], PROXIES, None),
        # the header of a proxy: the last address that is no proxy, whatever the caller has put before it
        ("10.0.0.1", ["192.0.2.1"], PROXIES, "192.0.2.1"),
        ("::ffff:10.0.0.1", ["192.0.2.1"], PROXIES, "192.0.2.1"),
        ("10.0.0.1", ["10.9.9.9, 192.0.2.1"], PROXIES, "192.0.2.1"),
        ("10.0.0.1", ["nonsense, 192.0.2.1 , 10.0.0.2"], PROXIES, "192.0.2.1"),
        ("10.0.0.1", ["10.9.9.9", "192.0.2.1,::1"], PROXIES, "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], PROXIES, "10.0.0.3"),
        # not known: never the proxy's own address, never what another peer says
        ("10.0.0.1", [], PROXIES, None),
        ("10.0.0.1", [""], PROXIES, None),
        ("10.0.0.1", ["192.0.2.1, "], PROXIES, None),
        ("10.0.0.1", ["192.0.2.1:443"], PROXIES, None),
        ("10.0.0.1", ["unknown"], PROXIES, None),
        ("10.0.1.1", ["192.0.2.1"], PROXIES, None),
        ("10.0.0.1", ["192.0.2.1"], (), None),
        ("no address", ["192.0.2.1"], PROXIES, None),
    ],
)
def test_the_address_of_a_caller(peer, forwarded, proxies, address):
    assert caller_address(peer, forwarded, proxies) == address
