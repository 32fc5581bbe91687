"""The end of a hash chain, with an authenticator: a chain that was cut or rewritten has none of ours."""

import hmac
from typing import NamedTuple

from evergrant_server.core.errors import Failure
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store.authority.authenticators import authority_broken

_GATEWAY = "gateway"
GENESIS_HASH = "0" * 64  # the previous hash of a chain's first record


def main_shard(role: Role) -> str:
    """The shard of all records of this role but those of its ledger. A gateway's are apart: its key makes no
    other end."""
    return _GATEWAY if role is Role.GATEWAY else "main"


def is_of_gateways(shard: str) -> bool:
    return shard.partition("-")[0] == _GATEWAY


class ChainHead(NamedTuple):
    """Where the next record of (tenant, shard) goes: behind record `count`, whose hash is `last_hash`."""

    tenant: str
    shard: str
    count: int
    last_hash: str
    mac: str | None

    @classmethod
    def first(cls, ring: KeyRing, tenant: str, shard: str) -> "ChainHead":
        none = cls(tenant, shard, 0, GENESIS_HASH, None)
        return none._replace(mac=none.made(ring))

    @property
    def name(self) -> str:
        return f"{self.tenant}/{self.shard}"

    def made(self, ring: KeyRing) -> str:
        """The authenticator that this end should have."""
        purpose = "audit head gateway" if is_of_gateways(self.shard) else "audit head"
        return ring.keyed_hash(purpose, self.tenant, self.shard, self.count, self.last_hash)

    def is_authentic(self, ring: KeyRing) -> bool:
        return self.mac is not None and hmac.compare_digest(self.made(ring), self.mac)

    def moved(self, ring: KeyRing, count: int, last_hash: str, *, authentic: bool) -> "ChainHead":
        """The new end. Behind one that isn't authentic it has no authenticator: that stays visible."""
        after = self._replace(count=count, last_hash=last_hash, mac=None)
        return after._replace(mac=after.made(ring)) if authentic else after

    @property
    def broken(self) -> Failure:
        """The failure that names it."""
        return authority_broken("audit_shard", self.name)
