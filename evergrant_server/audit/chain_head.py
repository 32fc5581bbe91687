"""The end of a hash chain, with an authenticator: a chain that was cut or rewritten has none of ours."""

import hmac
from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import select, update

from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditShardRow
from evergrant_server.store.authority import BrokenRow, authority_broken
from evergrant_server.store.database.rows import columns_equal, fetch_all

GENESIS_HASH = "0" * 64  # the previous hash of a chain's first record


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
        return ring.mac("audit head", self.tenant, self.shard, self.count, self.last_hash)

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


async def broken_heads(store: Store) -> list[BrokenRow]:
    """Each chain of any tenant whose end isn't ours."""
    return [
        BrokenRow(Tenant(it.tenant), it.broken)
        for it in await _heads(store)
        if not it.is_authentic(store.ring)
    ]


async def accept_heads(store: Store, names: Collection[str] | None = None) -> list[str]:
    """Write the authenticators of these ends (`tenant/shard`) as they are now, None: of all."""
    accepted: list[str] = []
    for head in await _heads(store):
        if names is not None and head.name not in names:
            continue
        now = columns_equal(AuditShardRow, tenant=head.tenant, shard=head.shard, last_hash=head.last_hash)
        async with store.write() as tx:
            await tx.connection.execute(update(AuditShardRow).where(now).values(mac=head.made(store.ring)))
        accepted.append(head.name)
    return accepted


async def _heads(store: Store) -> list[ChainHead]:
    async with store.read() as tx:
        found = await fetch_all(tx.connection, select(AuditShardRow))
    return [ChainHead(it["tenant"], it["shard"], it["count"], it["last_hash"], it["mac"]) for it in found]
