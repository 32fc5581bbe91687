"""The hash chains of before the trees, by rule 1: they are verified, and no record is added to them.

Each record's body has its place and the hash of the record before it; its leaf is the SHA-256 of its body.
Numbers begin with 1. How each chain has ended stands in the first tree of its tenant.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from evergrant_server.audit.appending import is_of_gateways
from evergrant_server.audit.bodies import format_timestamp
from evergrant_server.audit.erasing import is_erased
from evergrant_server.core.errors import Failure
from evergrant_server.crypto import KeyRing
from evergrant_server.store.authority.authenticators import authority_broken

GENESIS_HASH = "0" * 64  # the previous hash of a chain's first record
_COPIES = ("tenant", "shard", "seq", "action", "object")


class ChainEnd(NamedTuple):
    """The end of the chain of (tenant, shard): record `count`, whose hash is `last_hash`."""

    tenant: str
    shard: str
    count: int
    last_hash: str
    mac: str | None

    @property
    def name(self) -> str:
        return f"{self.tenant}/{self.shard}"

    def made(self, ring: KeyRing) -> str:
        """The authenticator that this end should have."""
        purpose = "audit head gateway" if is_of_gateways(self.shard) else "audit head"
        return ring.keyed_hash(purpose, self.tenant, self.shard, self.count, self.last_hash)

    def is_authentic(self, ring: KeyRing) -> bool:
        return self.mac is not None and hmac.compare_digest(self.made(ring), self.mac)

    @property
    def broken(self) -> Failure:
        """The failure that names it."""
        return authority_broken("audit_shard", self.name)


class Link(NamedTuple):
    """Whether a record is what was hashed, and whether it follows the one before it."""

    is_intact: bool
    follows: bool


def link_of(ring: KeyRing, row: Mapping[str, Any], previous: str) -> Link:
    """How this record stands behind the one with the hash `previous`. An erased one is at its place."""
    body: str | None = row["body"]
    if body is None:
        return Link(is_erased(ring, row), True)
    if row["erased_mac"] is not None or hashlib.sha256(body.encode()).digest() != row["leaf"]:
        return Link(False, False)
    try:
        content: dict[str, Any] = json.loads(body)
        is_intact = content["at"] == format_timestamp(row["at"])
        is_intact &= all(content[name] == row[name] for name in _COPIES)
        return Link(is_intact, content["previous_hash"] == previous)
    except (ValueError, KeyError):
        return Link(False, False)
