"""The heads log: heads of the trees that have grown, and a signed checkpoint over all of them.

Every few seconds one worker records the head of each tree that has grown, and signs one checkpoint of the
heads log, which covers every tree of the installation. Two workers at once are harmless: the end of the heads
log is locked meanwhile. A quiet installation costs one look at an index of marked trees.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from evergrant_server.audit.appending import HEADS, TreeEnd, append_heads, lock_heads
from evergrant_server.audit.bodies import Head
from evergrant_server.audit.checkpoints.notes import HEADS_LOG, LogSigner, TreeName
from evergrant_server.audit.checkpoints.proofs import fill_nodes
from evergrant_server.audit.merkle_tree import TILE_WIDTH
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.clock import Clock
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit.checkpoints import Checkpoint, LogKey, SignedHead, SignedTree
from evergrant_server.store.authority.authenticators import authority_broken
from evergrant_server.telemetry.alarms import report_broken_authority

KEY_ID = "alk_1"
_AT_ONCE = 200  # trees whose heads are recorded in one transaction
_HEADS_LOG = (INSTALLATION, HEADS)

Place = tuple[str, str]  # tenant and shard


class HeadsLog:
    """What a worker writes of it. Belongs to one event loop."""

    def __init__(self, store: Store, clock: Clock, name: str) -> None:
        """`name` is what the log is called from its first checkpoint on."""
        self._store, self._clock, self._name = store, clock, name
        self._signer: LogSigner | None = None
        self._quiet_at: int | None = None  # `Store.commits_seen` when no tree was marked

    async def advance(self) -> Checkpoint | None:
        """Record and sign what is new; returns the newest checkpoint, None: nothing was new.

        Raises Failure STORE_UNAVAILABLE, KEY_UNAVAILABLE, SEAL_BROKEN, AUTHORITY_BROKEN.
        """
        commits = await self._store.commits_seen()
        if commits is not None and commits == self._quiet_at:
            return None
        newest, after = None, ("", "")
        while True:
            async with self._store.read() as tx:
                marked = await tx.checkpoints.marked(after, _AT_ONCE)
            if not marked:
                break
            after = marked[-1]
            checkpoint, wider = await self._record(await self._signing(), marked)
            newest = checkpoint or newest
            await self._tidy([*marked, _HEADS_LOG], wider)
        if newest is None:
            self._quiet_at = commits
        return newest

    async def _record(
        self, signer: LogSigner, marked: Sequence[Place]
    ) -> tuple[Checkpoint | None, list[Place]]:
        """Record the heads of those that have grown, and sign the heads log as it is then.

        Returns the checkpoint, and the trees that have filled a tile.
        """
        async with self._store.write() as tx:
            before = await lock_heads(tx)
            grown = await _grown(tx, marked)
            now = self._clock.now()
            if grown:
                await append_heads(tx, [_record_of(tree, now) for tree, _ in grown])
            heads = [
                (
                    tree.tenant,
                    tree.shard,
                    SignedHead(_signed(signer, TreeName(tree.tenant, tree.shard), tree), number),
                )
                for number, (tree, _) in enumerate(grown, before.size)
            ]
            await tx.checkpoints.put_heads(heads)
            checkpoint = await _checkpoint(tx, signer, now)
        wider = [(tree.tenant, tree.shard) for tree, size in grown if _fills_tile(size, tree.size)]
        if checkpoint is not None and _fills_tile(before.size, checkpoint.tree.size):
            wider.append(_HEADS_LOG)
        return checkpoint, wider

    async def _tidy(self, marked: Sequence[Place], wider: Sequence[Place]) -> None:
        """Write the nodes that proofs of the wider trees read, then unmark those that a head covers."""
        for tenant, shard in wider:
            await fill_nodes(self._store, tenant, shard)
        async with self._store.write() as tx:
            await tx.checkpoints.settle(marked)

    async def _signing(self) -> LogSigner:
        if self._signer is None:
            async with self._store.write() as tx:
                self._signer = await log_signer(tx, self._name)
        return self._signer


async def log_signer(tx: Transaction, name: str) -> LogSigner:
    """The log's name and key. The first worker makes the key, under this name.

    Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN, AUTHORITY_BROKEN.
    """
    key = await tx.checkpoints.key()
    if key is None:
        private = Ed25519PrivateKey.generate()
        made = LogKey(KEY_ID, name, private.public_key().public_bytes_raw())
        await tx.checkpoints.add_key(made, private.private_bytes_raw(), tx.now)
        key = await tx.checkpoints.key()
        assert key is not None
    signer = LogSigner(key.name, Ed25519PrivateKey.from_private_bytes(await tx.checkpoints.seed(key)))
    if signer.public != key.public:
        raise authority_broken("audit_log_key", key.id)
    return signer


async def _grown(tx: Transaction, marked: Sequence[Place]) -> list[tuple[TreeEnd, int]]:
    """Of these trees those that have records without a head, as they are now that the heads log is locked,
    each with the size of its last head.

    One whose end isn't Evergrant's gets no head, and raises an alarm.
    """
    grown: list[tuple[TreeEnd, int]] = []
    for row in await tx.checkpoints.trees(marked):
        end = TreeEnd(**{name: row[name] for name in TreeEnd._fields})
        if (end.tenant, end.shard) == _HEADS_LOG or row["head_size"] >= end.size:
            continue
        if end.is_authentic(tx.ring):
            grown.append((end, row["head_size"]))
        else:
            report_broken_authority(end.broken)
    return grown


async def _checkpoint(tx: Transaction, signer: LogSigner, now: datetime) -> Checkpoint | None:
    """Sign the heads log, unless nothing was added. Raises Failure AUTHORITY_BROKEN."""
    end, newest = await lock_heads(tx), await tx.checkpoints.newest()
    if newest is not None and newest.tree.size == end.size:
        return None
    if not end.is_authentic(tx.ring):
        raise end.broken
    signed = _signed(signer, HEADS_LOG, end)
    await tx.checkpoints.add(signed, now)
    await tx.checkpoints.put_heads([(*_HEADS_LOG, SignedHead(signed, end.size))])
    return Checkpoint(signed, now)


def _fills_tile(before: int, after: int) -> bool:
    return before // TILE_WIDTH != after // TILE_WIDTH


def _record_of(tree: TreeEnd, now: datetime) -> Head:
    return Head(Tenant(tree.tenant), tree.shard, tree.size, tree.frontier.root, now)


def _signed(signer: LogSigner, name: TreeName, end: TreeEnd) -> SignedTree:
    signed = signer.sign(name, end.frontier)
    return SignedTree(end.size, signed.note, signed.cose)
