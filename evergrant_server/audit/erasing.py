"""Erases what records say: their bodies. Their leaves stay, so that every tree is still whole.

A record that was erased says so, with an authenticator over its place and its leaf: who writes to the
database can't pass a record off as erased, nor fill an erased one. What was said can't be guessed from the
leaf: the body has 128 random bits, which are erased as well.
"""

import hmac
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, func, literal, select, tuple_, union_all, update

from evergrant_server.audit.bodies import ERASED
from evergrant_server.audit.filing import records_about
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.connections.erasure import LegalHold, TargetKind, targets_of
from evergrant_server.core.ids import Tenant, has_id_shape
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Transaction
from evergrant_server.store.audit_tables import (
    DECISIVE_ACTIONS,
    END_ACTIONS,
    EVIDENCE_ACTIONS,
    AuditRow,
    AuditShardRow,
    AuditTreeRow,
    detail_of,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, columns_equal, fetch_all, fetch_first, insert
from evergrant_server.store.erasure.orders import AuditPruningRow
from evergrant_server.store.erasure.rows import names, text_names

_AT_ONCE = 500  # records of a step
_LOOKED_AT = 5_000  # records among which a step looks for a subject
_AUDIT = table_of(AuditRow).c
_KEPT = [action.value for action in EVIDENCE_ACTIONS]
_KEPT_BY_AGE = [*_KEPT, *(action.value for action in DECISIVE_ACTIONS)]
_ERASE = (
    update(AuditRow)
    .where(*(_AUDIT[name] == bindparam(f"of_{name}") for name in ("tenant", "shard", "seq")))
    .values(body=None, object=bindparam("left"), erased_mac=bindparam("made"))
)
_READ = [_AUDIT[name] for name in ("tenant", "shard", "seq", "at", "action", "object", "body", "leaf")]
_PAGE = select(*_READ)
_UNTOUCHED = _AUDIT.erased_mac.is_(None)
_TREES, _CHAINS = table_of(AuditTreeRow).c, table_of(AuditShardRow).c
_SHARDS = union_all(  # with the number of the first record of each
    select(_TREES.tenant, _TREES.shard, literal(0).label("first")),
    select(_CHAINS.tenant, _CHAINS.shard, literal(1).label("first")),
).subquery()


class Place(NamedTuple):
    """Behind which record a walk over a tenant's log goes on."""

    shard: str = ""
    seq: int = -1


def is_erased(ring: KeyRing, row: Mapping[str, Any]) -> bool:
    """Whether Evergrant has erased the record, and nothing was put in its place."""
    made = row["erased_mac"]
    return made is not None and row["body"] is None and hmac.compare_digest(made, _mac(ring, row))


async def erase_object(
    tx: Transaction, tenant: Tenant, object: str, since: datetime | None
) -> tuple[int, datetime | None]:
    """Erase what the next records about this object say, from `since` on. Returns how many, and the moment of
    the last one, to go on from there; None when none is left."""
    erasable = _UNTOUCHED & _AUDIT.action.not_in(_KEPT)
    rows = await records_about(tx, _READ, tenant, object, limit=_AT_ONCE, since=since, where=erasable)
    return await _erase(tx, rows), rows[-1]["at"] if len(rows) == _AT_ONCE else None


async def erase_naming(
    tx: Transaction, tenant: Tenant, subject: str | None, after: Place
) -> tuple[int, Place | None]:
    """Erase what the next records say, of those that name the subject (None: of all). Returns how many, and
    where to go on; None when the whole log was looked at."""
    step = _LOOKED_AT if subject is not None else _AT_ONCE
    last = await _last_of_step(tx, tenant, after, step)
    if last is None:
        return 0, await _next_shard(tx, tenant, after)
    part = _PAGE.where(_AUDIT.tenant == tenant, _AUDIT.shard == after.shard, _UNTOUCHED)
    part = part.where(_AUDIT.seq > after.seq, _AUDIT.seq <= last, _AUDIT.action.not_in(_KEPT))
    if subject is not None:
        part = part.where((_AUDIT.object == subject) | text_names(_AUDIT.body, subject))
    rows = await fetch_all(tx.connection, part)
    if subject is not None:
        rows = [row for row in rows if row["object"] == subject or names(detail_of(row["body"]), subject)]
    return await _erase(tx, rows), after._replace(seq=last)


async def prune_bodies(
    tx: Transaction, place: tuple[Tenant, str], before: datetime, holds: Sequence[LegalHold]
) -> int:
    """Erase what the oldest records of a shard say that weren't looked at yet, if they are from before then
    and no hold keeps them. Returns how many were looked at."""
    tenant, shard = place
    key = {"tenant": tenant, "shard": shard}
    done = await fetch_first(
        tx.connection, select(AuditPruningRow).where(columns_equal(AuditPruningRow, **key))
    )
    since = Place().seq if done is None else done["seq"]
    part = _PAGE.add_columns(_AUDIT.erased_mac).where(_AUDIT.tenant == tenant, _AUDIT.shard == shard)
    page = await fetch_all(tx.connection, part.where(_AUDIT.seq > since).order_by(_AUDIT.seq).limit(_AT_ONCE))
    old = [row for row in page if row["at"] < before]
    if not old or targets_of(holds, TargetKind.TENANT):
        return 0
    held = await tx.legal_holds.held_objects(tenant, holds, (row["object"] for row in old))
    subjects = targets_of(holds, TargetKind.SUBJECT)
    ripe = [row for row in old if row["erased_mac"] is None and row["action"] not in _KEPT_BY_AGE]
    await _erase(tx, [row for row in ripe if row["object"] not in held and not _names_any(row, subjects)])
    if done is None:
        await insert(tx.connection, AuditPruningRow, {**key, "seq": old[-1]["seq"], "revision": 1})
    else:
        moved = update(AuditPruningRow).where(columns_equal(AuditPruningRow, **key))
        await tx.connection.execute(moved.values(seq=old[-1]["seq"]))
    return len(old)


async def shards_to_prune(
    tx: Transaction, before: datetime, after: tuple[str, str], limit: int = 100
) -> list[tuple[Tenant, str]]:
    """The shards of every tenant whose next record is from before then, behind `after`: tenant and name.

    The installation's own says which shards there are, and names no subject: it stays.
    """
    shard, done, record = _SHARDS, table_of(AuditPruningRow), table_of(AuditRow)
    of_shard = (done.c.tenant == shard.c.tenant) & (done.c.shard == shard.c.shard)
    is_next = (record.c.tenant == shard.c.tenant) & (record.c.shard == shard.c.shard)
    is_next &= record.c.seq == func.coalesce(done.c.seq + 1, shard.c.first)
    query = (
        select(shard.c.tenant, shard.c.shard)
        .select_from(shard.outerjoin(done, of_shard).join(record, is_next))
        .where(tuple_(shard.c.tenant, shard.c.shard) > after, shard.c.tenant != INSTALLATION)
        .where(record.c.at < before)
        .order_by(shard.c.tenant, shard.c.shard)
        .limit(limit)
    )
    return [(Tenant(tenant), name) for tenant, name in await tx.connection.execute(query)]


def _names_any(row: Values, subjects: Collection[str]) -> bool:
    if not subjects:
        return False
    detail = detail_of(row["body"])
    return row["object"] in subjects or any(names(detail, subject) for subject in subjects)


async def _erase(tx: Transaction, rows: Sequence[Values]) -> int:
    changes: list[Values] = [
        {
            **{f"of_{name}": row[name] for name in ("tenant", "shard", "seq")},
            "left": row["object"] if _stays(row) else ERASED,
            "made": _mac(tx.ring, row),
        }
        for row in rows
    ]
    if changes:
        await tx.connection.execute(_ERASE, changes)
    return len(changes)


def _stays(row: Values) -> bool:
    """Whether the record's object is an id, and no subject; or one that `store.revived_rows` looks for."""
    return has_id_shape(row["object"]) or row["action"] in END_ACTIONS


async def _last_of_step(tx: Transaction, tenant: Tenant, after: Place, step: int) -> int | None:
    """The number of the last record of the next step in this shard; None when it has no more."""
    numbers = select(_AUDIT.seq).where(_AUDIT.tenant == tenant, _AUDIT.shard == after.shard)
    numbers = numbers.where(_AUDIT.seq > after.seq, _AUDIT.seq <= after.seq + step)
    row = await fetch_first(tx.connection, numbers.order_by(_AUDIT.seq.desc()).limit(1))
    return None if row is None else row["seq"]


async def _next_shard(tx: Transaction, tenant: Tenant, after: Place) -> Place | None:
    behind = (_SHARDS.c.tenant == tenant) & (_SHARDS.c.shard > after.shard)
    query: Select[Any] = select(_SHARDS.c.shard).where(behind)
    row = await fetch_first(tx.connection, query.order_by(_SHARDS.c.shard).limit(1))
    return None if row is None else Place(row["shard"])


def _mac(ring: KeyRing, row: Mapping[str, Any]) -> str:
    return ring.keyed_hash("audit erased", row["tenant"], row["shard"], row["seq"], row["leaf"].hex())
