"""Checkpoints of the audit log: the key that signs them, each tree's newest head, and where they were kept.

The rows say nothing that counts by itself: whoever reads a checkpoint has the log's public key from
elsewhere.
"""

import base64
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, LargeBinary, Text, delete, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field

from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, Sealed
from evergrant_server.store.audit_tables import AuditNodeRow, AuditRow, AuditTreeRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import SealedBy, table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    Values,
    columns_equal,
    fetch_all,
    fetch_first,
    find_one,
    insert,
)
from evergrant_server.store.keys import NO_CONNECTION, sealed_place
from evergrant_server.store.sealing import ColumnSealer

WITNESS = "witness "  # begins the name of an anchor whose evidence is a line of signature
_KEPT = 1000  # checkpoints behind the newest one that every anchor has


class AuditLogKeyRow(columns.IdTable, table=True):
    """The log's name and key. The seed opens for workers and operators: the API has no key of its purpose."""

    name: str
    public: bytes = Field(sa_type=LargeBinary)
    sealed_seed: Sealed = columns.sealed(SealedBy(KeyPurpose.REFRESH))
    created_at: datetime = columns.timestamp()


class AuditHeadRow(columns.TenantTable, table=True):
    """The newest head of a tree: where it stands in the heads log, and the log's signatures of it."""

    shard: str = Field(primary_key=True)
    size: int = Field(sa_type=BigInteger)
    place: int = Field(sa_type=BigInteger)
    note: str = Field(sa_type=Text)
    cose: bytes = Field(sa_type=LargeBinary)


class AuditCheckpointRow(columns.TenantTable, table=True):
    """The heads log at a size, with the log's signatures."""

    size: int = Field(primary_key=True, sa_type=BigInteger)
    note: str = Field(sa_type=Text)
    cose: bytes = Field(sa_type=LargeBinary)
    at: datetime = columns.timestamp()


class AuditAnchorRow(columns.IdTable, table=True):
    """What was kept last outside the database: `id` is the anchor's name, `evidence` what it has answered."""

    size: int = Field(sa_type=BigInteger)
    at: datetime = columns.timestamp()
    evidence: bytes = Field(sa_type=LargeBinary)
    problem: str | None = None


class LogKey(NamedTuple):
    """The log's name and public key."""

    id: str
    name: str
    public: bytes


class SignedTree(NamedTuple):
    """A tree at a size with the log's signatures: a note, and the signature of a receipt in COSE."""

    size: int
    note: str
    cose: bytes

    @property
    def root(self) -> bytes:
        """As the note has it."""
        return base64.b64decode(self.note.split("\n", 3)[2])


class SignedHead(NamedTuple):
    """The newest head of a tree. `place` is its index in the heads log."""

    tree: SignedTree
    place: int


class Checkpoint(NamedTuple):
    """The heads log at a size."""

    tree: SignedTree
    at: datetime


class Anchor(NamedTuple):
    """What an anchor kept last, and why it kept nothing newer. `size` 0: it has kept nothing yet."""

    name: str
    size: int
    at: datetime
    evidence: bytes
    problem: str | None


_KEYS, _HEADS = table_of(AuditLogKeyRow), table_of(AuditHeadRow)
_CHECKPOINTS, _ANCHORS = table_of(AuditCheckpointRow), table_of(AuditAnchorRow)
_TREES, _NODES, _AUDIT = table_of(AuditTreeRow), table_of(AuditNodeRow), table_of(AuditRow)
_OF_INSTALLATION = {"tenant": INSTALLATION, "revision": 1}


class AuditCheckpoints:
    """Within one transaction."""

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer = connection, sealer

    async def key(self) -> LogKey | None:
        """The log's public key; None while no worker has made one."""
        newest = select(_KEYS).order_by(_KEYS.c.created_at.desc(), _KEYS.c.id).limit(1)
        row = await fetch_first(self._connection, newest)
        return None if row is None else LogKey(row["id"], row["name"], row["public"])

    async def seed(self, key: LogKey) -> bytes:
        """The private key. Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN."""
        row = await find_one(self._connection, AuditLogKeyRow, tenant=INSTALLATION, id=key.id)
        assert row is not None
        place = sealed_place(_KEYS, "sealed_seed", row)
        seed = await self._sealer.open(KeyPurpose.REFRESH, NO_CONNECTION, place, row["sealed_seed"])
        return bytes.fromhex(seed.reveal())

    async def add_key(self, key: LogKey, seed: bytes, now: datetime) -> None:
        """Add the key, unless another worker has added its own under this id."""
        row = {**_OF_INSTALLATION, **key._asdict(), "created_at": now}
        place = sealed_place(_KEYS, "sealed_seed", row)
        sealed = await self._sealer.seal(KeyPurpose.REFRESH, NO_CONNECTION, place, Secret(seed.hex()))
        await insert(self._connection, AuditLogKeyRow, {**row, "sealed_seed": sealed})

    async def marked(self, after: tuple[str, str], limit: int) -> list[tuple[str, str]]:
        """Trees that may have records which no head covers: tenant and shard, in order, behind `after`."""
        place = (_TREES.c.tenant, _TREES.c.shard)
        query = select(*place).where(_TREES.c.grown, tuple_(*place) > after).order_by(*place).limit(limit)
        return [(tenant, shard) for tenant, shard in await self._connection.execute(query)]

    async def trees(self, places: Collection[tuple[str, str]]) -> list[Values]:
        """These trees, each with the size of its newest head as `head_size` (0: none), in order."""
        of_tree = (_HEADS.c.tenant == _TREES.c.tenant) & (_HEADS.c.shard == _TREES.c.shard)
        query = (
            select(_TREES, func.coalesce(_HEADS.c.size, 0).label("head_size"))
            .select_from(_TREES.outerjoin(_HEADS, of_tree))
            .where(tuple_(_TREES.c.tenant, _TREES.c.shard).in_(sorted(places)))
            .order_by(_TREES.c.tenant, _TREES.c.shard)
        )
        return await fetch_all(self._connection, query)

    async def settle(self, trees: Collection[tuple[str, str]]) -> None:
        """Unmark these trees, if their newest head covers all records. Waits for no writer: a tree whose end
        is locked stays marked."""
        same = (_HEADS.c.tenant == _TREES.c.tenant) & (_HEADS.c.shard == _TREES.c.shard)
        covered = select(_TREES.c.tenant, _TREES.c.shard).where(
            tuple_(_TREES.c.tenant, _TREES.c.shard).in_(sorted(trees)),
            select(_HEADS.c.size).where(same).scalar_subquery() == _TREES.c.size,
        )
        rows = await self._connection.execute(covered.with_for_update(skip_locked=True))
        places = [tuple(row) for row in rows]
        if places:
            of_places = tuple_(_TREES.c.tenant, _TREES.c.shard).in_(places)
            await self._connection.execute(update(_TREES).where(of_places).values(grown=False))

    async def put_heads(self, heads: Sequence[tuple[str, str, SignedHead]]) -> None:
        """Replace the newest heads of these trees: tenant, shard, head."""
        rows = [
            {"tenant": tenant, "shard": shard, **head.tree._asdict(), "place": head.place, "revision": 1}
            for tenant, shard, head in heads
        ]
        await self._put(AuditHeadRow, rows, ("size", "place", "note", "cose"))

    async def head(self, tenant: str, shard: str) -> SignedHead | None:
        row = await find_one(self._connection, AuditHeadRow, tenant=tenant, shard=shard)
        return None if row is None else SignedHead(_signed(row), row["place"])

    async def add(self, tree: SignedTree, at: datetime) -> None:
        """Add a checkpoint, and delete old ones that every anchor has got beyond."""
        row = {**_OF_INSTALLATION, **tree._asdict(), "at": at}
        await insert(self._connection, AuditCheckpointRow, row)
        anchored = select(func.coalesce(func.min(_ANCHORS.c.size), tree.size)).scalar_subquery()
        kept = (
            select(_CHECKPOINTS.c.size)
            .where(_CHECKPOINTS.c.size <= anchored)
            .order_by(_CHECKPOINTS.c.size.desc())
            .offset(_KEPT)
            .limit(1)
        )
        await self._connection.execute(
            delete(_CHECKPOINTS).where(_CHECKPOINTS.c.size <= kept.scalar_subquery())
        )

    async def newest(self) -> Checkpoint | None:
        query = select(_CHECKPOINTS).order_by(_CHECKPOINTS.c.size.desc()).limit(1)
        return _checkpoint(await fetch_first(self._connection, query))

    async def covering(self, place: int) -> SignedTree | None:
        """A checkpoint of the heads log that has the record at `place`: the newest one that witnesses have
        signed, with their signatures, else the newest one."""
        signatures: dict[int, list[str]] = {}
        for anchor in (await self.anchors()).values():
            if anchor.size > place and anchor.name.startswith(WITNESS):
                signatures.setdefault(anchor.size, []).append(anchor.evidence.decode())
        for size in sorted(signatures, key=lambda size: (len(signatures[size]), size), reverse=True):
            row = await find_one(self._connection, AuditCheckpointRow, tenant=INSTALLATION, size=size)
            if row is not None:
                tree = _signed(row)
                return tree._replace(note=tree.note + "".join(signatures[size]))
        newest = await self.newest()
        return None if newest is None or newest.tree.size <= place else newest.tree

    async def first_beyond(self, size: int) -> Checkpoint | None:
        """The oldest checkpoint that there is of a larger tree."""
        beyond = select(_CHECKPOINTS).where(_CHECKPOINTS.c.size > size)
        query = beyond.order_by(_CHECKPOINTS.c.size).limit(1)
        return _checkpoint(await fetch_first(self._connection, query))

    async def anchors(self) -> dict[str, Anchor]:
        """What each anchor kept last, by its name."""
        rows = await fetch_all(self._connection, select(_ANCHORS).where(_ANCHORS.c.tenant == INSTALLATION))
        return {row["id"]: _anchor(row) for row in rows}

    async def forget_anchors(self, names: Collection[str]) -> None:
        """Delete the rows of all anchors but these: one that isn't asked any more must hold up nothing."""
        await self._connection.execute(delete(_ANCHORS).where(_ANCHORS.c.id.not_in(sorted(names))))

    async def put_anchor(self, anchor: Anchor) -> None:
        """Write what the anchor has kept; another worker's that has kept more stays."""
        row = {**_OF_INSTALLATION, **anchor._asdict()}
        row["id"] = row.pop("name")
        await self._put(AuditAnchorRow, [row], ("size", "at", "evidence", "problem"), "size")

    async def nodes(self, tenant: str, shard: str, level: int, first: int, end: int) -> dict[int, bytes]:
        """The hashes of a level from number `first` on, before `end`, as far as they are there."""
        if level == 0:
            number, value, of_level = _AUDIT.c.seq, _AUDIT.c.leaf, columns_equal(AuditRow)
            of_tree = columns_equal(AuditRow, tenant=tenant, shard=shard)
        else:
            number, value, of_level = _NODES.c.number, _NODES.c.hash, _NODES.c.level == level
            of_tree = columns_equal(AuditNodeRow, tenant=tenant, shard=shard)
        query = select(number, value).where(of_tree, of_level, number >= first, number < end)
        return {row[0]: row[1] for row in await self._connection.execute(query)}

    async def count_nodes(self, tenant: str, shard: str, level: int) -> int:
        """How many hashes of a level are there: they have no gap."""
        of_level = columns_equal(AuditNodeRow, tenant=tenant, shard=shard, level=level)
        last = select(_NODES.c.number).where(of_level).order_by(_NODES.c.number.desc()).limit(1)
        row = await fetch_first(self._connection, last)
        return 0 if row is None else row["number"] + 1

    async def add_nodes(
        self, tenant: str, shard: str, level: int, first: int, hashes: Sequence[bytes]
    ) -> None:
        """Add hashes of a level from number `first` on; those that are there stay."""
        which = {"tenant": tenant, "shard": shard, "level": level, "revision": 1}
        rows = [{**which, "number": number, "hash": value} for number, value in enumerate(hashes, first)]
        await self._put(AuditNodeRow, rows, ())

    async def record(self, tenant: str, shard: str, seq: int) -> tuple[str | None, bytes] | None:
        """The body (None: erased) and the leaf of a record of a tree."""
        row = await find_one(self._connection, AuditRow, tenant=tenant, shard=shard, seq=seq)
        return None if row is None else (row["body"], row["leaf"])

    async def _put(
        self, table: type[columns.Row], rows: Sequence[Values], changed: Sequence[str], grows: str = ""
    ) -> None:
        """Add rows. Of those that are there change these columns, unless that would shrink `grows`."""
        if not rows:
            return
        target = table_of(table)
        is_sqlite = self._connection.dialect.name == "sqlite"
        statement: Any = (sqlite.insert if is_sqlite else postgresql.insert)(target)
        if changed:
            where = target.c[grows] <= statement.excluded[grows] if grows else None
            values = {name: statement.excluded[name] for name in changed}
            statement = statement.on_conflict_do_update(
                index_elements=list(target.primary_key), set_=values, where=where
            )
        else:
            statement = statement.on_conflict_do_nothing()
        await self._connection.execute(statement, list(rows))


def _signed(row: Values) -> SignedTree:
    return SignedTree(row["size"], row["note"], row["cose"])


def _checkpoint(row: Values | None) -> Checkpoint | None:
    return None if row is None else Checkpoint(_signed(row), row["at"])


def _anchor(row: Values) -> Anchor:
    return Anchor(row["id"], row["size"], row["at"], row["evidence"], row["problem"])
