"""The keyed hash of an agent's call: HMAC-SHA256 over its canonical JSON (RFC 8785)."""

from collections.abc import Mapping
from typing import Any

import rfc8785

from evergrant_server.crypto.keyring import KeyRing


def call_hash(ring: KeyRing, tenant: str, members: Mapping[str, Any]) -> str:
    """The same for the same JSON however it is written, in hex. Every role can make it.

    Raises ValueError for what isn't I-JSON: numbers that a double doesn't hold, half characters, or a
    nesting that is too deep.
    """
    try:
        canonical = rfc8785.dumps(dict(members)).decode()
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return ring.keyed_hash("agent call", tenant, canonical)
