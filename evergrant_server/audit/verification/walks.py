"""Walks one tree or one chain of the audit log to its end, page by page, and says where it is wrong.

Memory stays the same however long it is: one page of records and the frontier of their tree. Between two
pages the place is all that another process needs to go on.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import select, text, tuple_

from evergrant_server.audit.appending import HEADS, TreeEnd, is_heads_log, is_of_gateways
from evergrant_server.audit.bodies import Head, beginning, format_timestamp
from evergrant_server.audit.chains import GENESIS_HASH, ChainEnd, link_of
from evergrant_server.audit.erasing import is_erased
from evergrant_server.audit.merkle_tree import HASH_BYTES, TILE_WIDTH, Frontier, Nodes, leaf_hash
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import NO_LEASE_CONDITION, AuditNodeRow, AuditRow, AuditTreeRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import fetch_all, fetch_first

_STRIDE = 1_024  # records read at a time: about 15 ms
_AUDIT, _NODES, _TREES = table_of(AuditRow).c, table_of(AuditNodeRow).c, table_of(AuditTreeRow).c
_READ = [
    _AUDIT[name]
    for name in ("tenant", "shard", "seq", "at", "action", "object", "body", "leaf", "erased_mac")
]
_COPY_EDITED = "the record was edited: its row says otherwise than its body"
_UNREADABLE = -1  # the size of a head that was edited
_TILE_BITS = TILE_WIDTH.bit_length() - 1


class FlawKind(StrEnum):
    """What is wrong at a place of the log."""

    EDITED = "edited"  # a record isn't what was hashed, or its row says otherwise than its body
    MISSING = "missing"  # no record has the number
    CUT = "cut"  # the tail is gone
    ADDED = "added"  # beyond the end
    REPLACED = "replaced"  # one of some records was swapped, renumbered or hashed anew
    FORGED_END = "forged end"
    FORGED_HEAD = "forged head"
    FORGED_NODE = "forged node"
    GONE = "gone"  # a shard with its end
    UNKNOWN = "unknown"  # a shard that Evergrant never began


class ShardHead(NamedTuple):
    """The size of a tree and its root in hex, to be kept outside the database; of a chain its length and its
    last hash."""

    size: int
    root: str


class Flaw(NamedTuple):
    seq: int
    kind: FlawKind
    why: str


class TreePlace(NamedTuple):
    """How far a tree is walked: its records, how many of them a head has confirmed, and where in the heads
    log the last of these heads stands."""

    frontier: Frontier = Frontier()
    good: int = 0
    head: tuple[datetime, int] | None = None

    @property
    def size(self) -> int:
        return self.frontier.size


class TreeWalk:
    """A walk over one tree, up to this end, with the heads of the heads log before number `heads_size`."""

    def __init__(self, store: Store, end: TreeEnd, heads_size: int, place: TreePlace | None = None) -> None:
        self._store, self.end, self.place, self.done = store, end, place or TreePlace(), False
        self._heads = self._heads_after(self.place.head, heads_size)
        self._head: tuple[tuple[datetime, int], Head] | None = None  # the next one, with its place
        self._has_begun = False

    async def advance(self) -> Flaw | None:
        """Check the next page of records; behind the last one, the end."""
        if not self._has_begun:
            self._head, self._has_begun = await anext(self._heads, None), True
        size = self.place.size
        rows = await _page(self._store, self.end, size - 1, self.end.size)
        flaw = next(filter(None, map(self._record_flaw, rows, range(size, self.end.size))), None)
        flaw = flaw or await self._append([row["leaf"] for row in rows])
        if flaw is None and len(rows) < _STRIDE:
            self.done, flaw = True, await self._end_flaw()
        return flaw

    async def _append(self, leaves: Sequence[bytes]) -> Flaw | None:
        """Append leaves of records that are good by themselves, and compare each head on the way."""
        (frontier, good, at), nodes = self.place, Nodes()
        while self._head is not None and self._head[1].size <= frontier.size + len(leaves):
            head = self._head[1]
            count = head.size - frontier.size
            if count < 0:
                why = f"a head of {head.size} records is recorded behind one of {frontier.size}"
                if head.size == _UNREADABLE:
                    why = "a record of the heads log about this tree was edited"
                return Flaw(max(head.size, 0), FlawKind.FORGED_HEAD, why)
            frontier, filled = frontier.appended_with_nodes(leaves[:count])
            nodes |= filled
            leaves = leaves[count:]
            if frontier.root != head.root:
                return _replaced(good, head.size)
            good, at = head.size, self._head[0]
            self._head = await anext(self._heads, None)
        frontier, filled = frontier.appended_with_nodes(leaves)
        self.place = TreePlace(frontier, good, at)
        return await self._forged_node(nodes | filled)

    async def _end_flaw(self) -> Flaw | None:
        """A flaw of the end, once all records before it are good by themselves."""
        frontier, end = self.place.frontier, self.end
        if frontier.size < end.size:
            why = f"the tail is cut: {end.size} records were committed"
            return Flaw(frontier.size, FlawKind.CUT, why)
        if frontier.size > end.size:  # by what was confirmed before
            why = f"the tail is cut with the recorded end: there were {frontier.size} records"
            return Flaw(end.size, FlawKind.CUT, why)
        if self._head is not None:
            size = self._head[1].size
            why = f"the tail is cut with the recorded end: by the heads log there were {size} records"
            return Flaw(end.size, FlawKind.CUT, why)
        if not end.is_authentic(self._store.ring):
            why = "the recorded end of the tree wasn't written by Evergrant"
            return Flaw(max(end.size - 1, 0), FlawKind.FORGED_END, why)
        if frontier.peaks != end.peaks:
            return _replaced(*_differing(frontier, end.frontier, self.place.good))
        return await self._node_beyond()

    def _record_flaw(self, row: Mapping[str, Any], number: int) -> Flaw | None:
        if row["seq"] != number:
            return Flaw(number, FlawKind.MISSING, "a record is missing")
        body: str | None = row["body"]
        if body is None:
            why = "the record was erased, and not by Evergrant"
            return None if is_erased(self._store.ring, row) else Flaw(number, FlawKind.EDITED, why)
        if row["erased_mac"] is not None or leaf_hash(body.encode()) != row["leaf"]:
            return Flaw(number, FlawKind.EDITED, "the record was edited: its leaf doesn't cover its body")
        if is_heads_log(row["tenant"], row["shard"]):
            return _head_flaw(row, body)
        if not body.startswith(beginning(format_timestamp(row["at"]), row["action"], row["object"])):
            return Flaw(number, FlawKind.EDITED, _COPY_EDITED)
        return None

    async def _heads_after(
        self, place: tuple[datetime, int] | None, heads_size: int
    ) -> AsyncGenerator[tuple[tuple[datetime, int], Head]]:
        """The heads of this tree in the heads log behind this place, each with its own."""
        order = (_AUDIT.at, _AUDIT.seq)
        types = [column.type for column in order]
        query = select(_AUDIT.at, _AUDIT.seq, _AUDIT.body).where(
            *(_AUDIT.tenant == INSTALLATION, _AUDIT.object == self.end.name, _AUDIT.shard == HEADS),
            *(text(NO_LEASE_CONDITION), _AUDIT.seq < heads_size),
        )
        query = query.order_by(*order).limit(_STRIDE)
        while True:
            page = query if place is None else query.where(tuple_(*order) > tuple_(*place, types=types))
            async with self._store.read() as tx:
                rows = await fetch_all(tx.connection, page)
            for row in rows:
                place = row["at"], row["seq"]
                yield place, self._head_of(row)
            if len(rows) < _STRIDE:
                return

    def _head_of(self, row: Mapping[str, Any]) -> Head:
        try:
            return Head.parse(row["body"] or "")
        except ValueError:  # in the part of the heads log that this verification hasn't walked
            return Head(Tenant(self.end.tenant), self.end.shard, _UNREADABLE, b"", row["at"])

    # --- tiles ---------------------------------------------------------------------------

    async def _forged_node(self, full: Nodes) -> Flaw | None:
        """The first stored hash of these full tiles that isn't theirs. Not all are stored yet."""
        if not full:
            return None
        query = select(_NODES.level, _NODES.number, _NODES.hash).where(
            _NODES.tenant == self.end.tenant,
            _NODES.shard == self.end.shard,
            tuple_(_NODES.level, _NODES.number).in_(list(full)),
        )
        async with self._store.read() as tx:
            rows = await fetch_all(tx.connection, query.order_by(_NODES.level, _NODES.number))
        for row in rows:
            if row["hash"] != full[row["level"], row["number"]]:
                return _node_flaw(row["level"], row["number"], "isn't that of its tile")
        return None

    async def _node_beyond(self) -> Flaw | None:
        """A stored hash of a tile that isn't full."""
        of_tree = (_NODES.tenant == _TREES.tenant) & (_NODES.shard == _TREES.shard)
        full = _TREES.size.op(">>")(_TILE_BITS * _NODES.level)
        of_end = (_NODES.tenant == self.end.tenant, _NODES.shard == self.end.shard, _NODES.number >= full)
        query = select(_NODES.level, _NODES.number).where(of_tree, *of_end)
        async with self._store.read() as tx:
            row = await fetch_first(tx.connection, query.order_by(_NODES.level, _NODES.number).limit(1))
        why = "is of a tile that isn't full"
        return None if row is None else _node_flaw(row["level"], row["number"], why)


class ChainPlace(NamedTuple):
    """How far a chain of before is walked: the number and the hash of the last record."""

    size: int = 0
    last_hash: str = GENESIS_HASH


class ChainWalk:
    """A walk over one chain of before, up to this end."""

    def __init__(self, store: Store, end: ChainEnd, place: ChainPlace | None = None) -> None:
        self._store, self.end, self.place, self.done = store, end, place or ChainPlace(), False

    async def advance(self) -> Flaw | None:
        """Check the next page of records; behind the last one, the end."""
        size, previous = self.place
        rows = await _page(self._store, self.end, size, self.end.count + 1)
        for row in rows:
            flaw = self._link_flaw(row, size + 1, previous)
            if flaw is not None:
                return flaw
            size, previous = row["seq"], row["leaf"].hex()
        self.place = ChainPlace(size, previous)
        if len(rows) < _STRIDE:
            self.done = True
            return self._end_flaw()
        return None

    def _link_flaw(self, row: Mapping[str, Any], number: int, previous: str) -> Flaw | None:
        if row["seq"] != number:
            return Flaw(number, FlawKind.MISSING, "a record is missing")
        link = link_of(self._store.ring, row, previous)
        if not link.is_intact:
            why = "the record was edited or moved: its hash doesn't cover its content"
            return Flaw(number, FlawKind.EDITED, why)
        if not link.follows:
            return Flaw(number, FlawKind.REPLACED, "the record doesn't follow the one before it")
        return None

    def _end_flaw(self) -> Flaw | None:
        size, last_hash = self.place
        if size < self.end.count:
            why = f"the tail is cut: {self.end.count} records were committed"
            return Flaw(size + 1, FlawKind.CUT, why)
        if last_hash != self.end.last_hash:
            why = "the last record isn't the one that was committed last"
            return Flaw(size, FlawKind.REPLACED, why)
        if not self.end.is_authentic(self._store.ring):
            why = "the recorded end of the chain wasn't written by Evergrant"
            return Flaw(size, FlawKind.FORGED_END, why)
        return None


async def _page(store: Store, end: TreeEnd | ChainEnd, last: int, until: int) -> list[dict[str, Any]]:
    """The next records of a shard behind number `last` and before number `until`."""
    of_shard = (_AUDIT.tenant == end.tenant, _AUDIT.shard == end.shard)
    query = select(*_READ).where(*of_shard, _AUDIT.seq > last, _AUDIT.seq < until)
    async with store.read() as tx:
        return await fetch_all(tx.connection, query.order_by(_AUDIT.seq).limit(_STRIDE))


def _head_flaw(row: Mapping[str, Any], body: str) -> Flaw | None:
    """A flaw of a record of the heads log whose leaf covers its body."""
    try:
        head = Head.parse(body)
    except ValueError:
        return Flaw(row["seq"], FlawKind.FORGED_HEAD, "the record is no head")
    if is_of_gateways(row["shard"]) and not is_of_gateways(head.shard):
        return Flaw(row["seq"], FlawKind.FORGED_HEAD, f"a gateway doesn't begin {head.name}")
    is_birth = row["action"] == AuditAction.SHARD_BEGUN
    action = AuditAction.SHARD_BEGUN if is_birth or head.size == 0 else AuditAction.HEAD_RECORDED
    if (row["object"], row["at"], row["action"]) != (head.name, head.at, action):
        return Flaw(row["seq"], FlawKind.EDITED, _COPY_EDITED)
    return None


def _replaced(good: int, end: int) -> Flaw:
    why = f"one of the records {good} to {end - 1} isn't the one that was committed, or not at its place"
    return Flaw(good, FlawKind.REPLACED, why)


def _node_flaw(level: int, number: int, why: str) -> Flaw:
    first = number << (_TILE_BITS * level)
    return Flaw(first, FlawKind.FORGED_NODE, f"the stored hash {number} of level {level} {why}")


def _differing(walked: Frontier, recorded: Frontier, good: int) -> tuple[int, int]:
    """The records, from and before, below the first peak that differs; none of the first `good` does."""
    begin, size = 0, walked.size
    subtrees = [bits for bits in range(size.bit_length(), -1, -1) if size >> bits & 1]
    for place, bits in enumerate(subtrees):
        peak = slice(HASH_BYTES * place, HASH_BYTES * (place + 1))
        end = begin + (1 << bits)
        if walked.peaks[peak] != recorded.peaks[peak]:
            return max(begin, good), end
        begin = end
    return good, size
