"""Records in chains, one per tenant and shard: appended in order, hashed in one spelling.

The end of a chain has an authenticator: one that was cut or rewritten has none of ours.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, exists, select, update

from evergrant_server.audit.publishing import publish_events
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry, AuditRecord, bound_scopes
from evergrant_server.core.errors import Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Transaction
from evergrant_server.store.audit_tables import AuditRow, AuditShardRow
from evergrant_server.store.authority.authenticators import authority_broken
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, change, columns_equal, fetch_first, insert
from evergrant_server.store.webhooks import WebhookRow
from evergrant_server.telemetry.alarms import report_broken_authority

RECORD_FORMAT = 1
GENESIS_HASH = "0" * 64  # the previous hash of a chain's first record
_GATEWAY = "gateway"
_HASHED_AS_THEY_ARE = (
    "tenant", "shard", "seq", "action", "object", "by", "trace_id",
    "workflow_id", "run_id", "event_id", "previous_hash",
)  # fmt: skip
_SCALARS = (str, int, float, type(None))
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


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


def canonical_json(value: Any) -> str:
    """One JSON text per value: sorted names, no spaces, ASCII only, no NaN.

    Raises TypeError for what JSON can't say (a Secret, for one) and for names that are not
    text, ValueError for NaN and infinities.
    """
    _check_names(value)
    return _ENCODER.encode(value)


def format_timestamp(at: datetime) -> str:
    """UTC with microseconds: the same text from SQLite and from PostgreSQL."""
    in_utc = at if at.tzinfo is UTC else at.astimezone(UTC)  # which is as slow as the rest
    return in_utc.isoformat(timespec="microseconds")


def record_hash(row: Mapping[str, Any]) -> str:
    """SHA-256 over everything a row of the audit table says, the hash before it included."""
    return hashlib.sha256(record_body(row).encode()).hexdigest()


def record_body(row: Mapping[str, Any]) -> str:
    """The canonical JSON that `record_hash` hashes."""
    content = {name: row[name] for name in _HASHED_AS_THEY_ARE}
    content |= {
        "format": RECORD_FORMAT,
        "at": format_timestamp(row["at"]),
        "detail": json.loads(row["detail"]),
    }
    return canonical_json(content)


def _check_names(value: Any) -> None:
    """Refuse names that are not text: json.dumps writes 1 and "1" alike."""
    if isinstance(value, _SCALARS):  # nearly all; asking for a Mapping takes longer
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise TypeError(f"a name in an audit detail is text, not {type(name).__name__}")
            _check_names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_names(inner)


_SHARDS = table_of(AuditShardRow)
_ADD_RECORD = table_of(AuditRow).insert()
_MOVE_END = (
    update(_SHARDS)
    .where(_SHARDS.c.tenant == bindparam("of_tenant"), _SHARDS.c.shard == bindparam("of_shard"))
    .values(
        count=bindparam("count"),
        last_hash=bindparam("last_hash"),
        mac=bindparam("mac"),
        revision=_SHARDS.c.revision + 1,
    )
)
_LOCK_END = (
    select(
        _SHARDS.c.count,
        _SHARDS.c.last_hash,
        _SHARDS.c.mac,
        exists()
        .where(columns_equal(WebhookRow, tenant=bindparam("tenant"), disabled_by=None))
        .label("has_webhooks"),
    )
    .where(_SHARDS.c.tenant == bindparam("tenant"), _SHARDS.c.shard == bindparam("shard"))
    .with_for_update()
)


_NO_PROVENANCE = {"workflow_id": None, "run_id": None, "event_id": None}


async def append(tx: Transaction, entry: AuditEntry, *, shard: str | None = None) -> AuditRecord:
    """As `append_all`, for one entry: its record."""
    (row,) = await append_all(tx, [entry], shard=shard)
    return record_of(row)


async def append_all(
    tx: Transaction, entries: Sequence[AuditEntry], *, shard: str | None = None
) -> list[Values]:
    """Add records of one tenant to its chain in `shard` (None: the main one of this role), committed or
    rolled back with `tx`, and write the webhook events that follow from them. Returns their rows.

    Change the rows first and append last: from here to the commit the chain is locked, and
    writers that lock a chain before a row would wait for each other crosswise.

    A broken head stops no record, for a revocation must be recorded: it raises an alarm each time.

    Raises TypeError when a detail holds what JSON can't say: a Secret never gets in.
    """
    (tenant,) = {entry.tenant for entry in entries}
    ring = tx.sealer.ring
    shard = shard or main_shard(ring.role)
    head, has_webhooks = await _locked_head(tx, tenant, shard, entries[0].at)
    authentic = head.is_authentic(ring)
    if not authentic:
        report_broken_authority(head.broken)
    rows = chained_rows(entries, shard, head.count, head.last_hash)
    if len(rows) == 1:
        await change(tx.connection, _ADD_RECORD, rows[0])
    else:
        await tx.connection.execute(_ADD_RECORD, rows)
    end = head.moved(ring, rows[-1]["seq"], rows[-1]["hash"], authentic=authentic)
    moved = {"count": end.count, "last_hash": end.last_hash, "mac": end.mac}
    await change(tx.connection, _MOVE_END, {"of_tenant": tenant, "of_shard": shard, **moved})
    if has_webhooks:
        for entry in entries:
            await publish_events(tx, entry)
    return rows


def chained_rows(entries: Sequence[AuditEntry], shard: str, seq: int, previous: str) -> list[Values]:
    """The rows of these entries, behind the record that has number `seq` and hash `previous`."""
    rows: list[Values] = []
    for number, entry in enumerate(entries, seq + 1):
        row: Values = {
            "tenant": entry.tenant,
            "shard": shard,
            "seq": number,
            "at": entry.at,
            "action": entry.action.value,
            "object": entry.object,
            "by": entry.context.by,
            "trace_id": entry.context.trace_id,
            "detail": canonical_json(bound_scopes(entry.detail)),
            **(entry.provenance.model_dump() if entry.provenance else _NO_PROVENANCE),
            "previous_hash": previous,
            "revision": 1,
        }
        previous = row["hash"] = record_hash(row)
        rows.append(row)
    return rows


async def begin_chain(tx: Transaction, tenant: str, shard: str) -> None:
    """Begin the chain of a shard, and record that in the installation's chain, unless it has begun."""
    await _locked_head(tx, tenant, shard, tx.now)


def _birth_entry(role: Role, tenant: str, shard: str, at: datetime) -> AuditEntry:
    """The record in the installation's chain that this shard begins: it is missed when it is deleted."""
    return AuditEntry(
        tenant=INSTALLATION,
        at=at,
        action=AuditAction.SHARD_BEGUN,
        object=f"{tenant}/{shard}",
        context=RequestContext(by=role),
    )


async def _locked_head(tx: Transaction, tenant: str, shard: str, at: datetime) -> tuple[ChainHead, bool]:
    """The end of the chain, and whether the tenant has a webhook.

    The end's row is locked until the transaction ends, so that numbers have no gaps. (SQLite's write
    transaction locks all.)
    """
    which = {"tenant": tenant, "shard": shard}
    end = await fetch_first(tx.connection, _LOCK_END, which)
    if end is None:
        first = ChainHead.first(tx.sealer.ring, tenant, shard)
        is_new = await insert(tx.connection, AuditShardRow, {**first._asdict(), "revision": 1})
        if is_new and tenant != INSTALLATION:
            await append(tx, _birth_entry(tx.sealer.ring.role, tenant, shard, at))
        end = await fetch_first(tx.connection, _LOCK_END, which)
        assert end is not None
    head = ChainHead(tenant, shard, end["count"], end["last_hash"], end["mac"])
    return head, bool(end["has_webhooks"])


def record_of(row: Mapping[str, Any]) -> AuditRecord:
    provenance = None if row["workflow_id"] is None else row
    nested = {"context": row, "detail": json.loads(row["detail"]), "provenance": provenance}
    return AuditRecord.model_validate({**row, **nested})
