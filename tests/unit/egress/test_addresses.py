"""Which addresses are public: every notation and wrapping of a private one is refused."""

import pytest

from evergrant_server.egress.policy import address_refusal

REFUSED = """
    127.0.0.1 127.8.8.8 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 169.254.169.254 0.0.0.0
    224.0.0.1 240.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1
    ::1 :: fe80::1 fe80::1%eth0 fc00::1 fec0::1 ff02::1 64:ff9b::7f00:1 64:ff9b:1::a00:1
    64:ff9b:1:a00:0:100:808:808 2002:7f00:1::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1
"""


@pytest.mark.parametrize("address", [*REFUSED.split(), "not an address"])
def test_non_public_addresses_are_refused(address: str) -> None:
    assert address_refusal(address) is not None


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses_are_accepted(address: str) -> None:
    assert address_refusal(address) is None
