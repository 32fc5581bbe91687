"""The keyed hash of an agent's call: HMAC-SHA256 over its canonical JSON (RFC 8785)."""

from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

from evergrant_server.crypto.keyring import KeyRing

_INEXACT = 2**53  # from here on a double holds not every integer: 2^53 + 1 as a float is 2^53


def call_hash(ring: KeyRing, tenant: str, members: Mapping[str, Any]) -> str:
    """The same for the same JSON however it is written, in hex. Every role can make it.

    Raises ValueError for what isn't I-JSON: numbers that a double doesn't hold, half characters, or a
    nesting that is too deep.
    """
    try:
        _require_exact(members)
        canonical = rfc8785.dumps(dict(members)).decode()
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return ring.keyed_hash("agent call", tenant, canonical)


def _require_exact(value: object) -> None:
    """Raise ValueError for a float that may stand for more than one integer; rfc8785 does for integers."""
    if isinstance(value, float) and abs(value) >= _INEXACT:
        raise ValueError("has a number that a double doesn't hold")
    if isinstance(value, Mapping):
        for member in value.values():
            _require_exact(member)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for element in value:
            _require_exact(element)
