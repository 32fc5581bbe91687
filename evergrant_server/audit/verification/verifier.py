"""Verifies the audit log: every tree and every chain of a tenant, and which of them there are.

The heads log of the installation has every head of every tenant, so it outgrows each of their logs. Who
verifies a tenant's log reads its own heads there by an index, and needs to know that none is missing. A
verification that found nothing leaves a record in the tenant's own log (`audit.verified`): the heads log as
far as it was walked, and a hash over the newest heads of the tenant until there. The next one walks the heads
log from there on. That record is believed because the walk over the tenant's own trees proves it.
"""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select, text

from evergrant_server.audit.appending import HEADS, TreeEnd, is_heads_log, is_of_gateways
from evergrant_server.audit.chains import ChainEnd
from evergrant_server.audit.merkle_tree import Frontier, leaf_hash
from evergrant_server.audit.shards import End, births_of, ends
from evergrant_server.audit.verification.walks import (
    ChainPlace,
    ChainWalk,
    Flaw,
    FlawKind,
    ShardHead,
    TreePlace,
    TreeWalk,
)
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit_tables import NO_LEASE_CONDITION, AuditRow, detail_of
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import columns_equal, fetch_all, fetch_first

_AUDIT = table_of(AuditRow).c
_MARKS = 20  # records of verifications, among which one that counts is looked for


@dataclass(frozen=True)
class AuditVerification:
    """`ok`, or the first bad place: shard, number, kind and why. `heads` can be kept elsewhere."""

    ok: bool
    records: int
    shard: str | None = None
    seq: int | None = None
    kind: FlawKind | None = None
    problem: str | None = None
    heads: dict[str, ShardHead] = field(default_factory=dict)


async def verify_log(store: Store, tenant: Tenant, *, whole: bool = True) -> AuditVerification:
    """Check every tree of a tenant against its leaves, numbers, heads and recorded end, and the chains of
    before.

    Finds a record that was deleted, edited, moved or added by hand, a tail that was cut, a tree that was
    written anew: its end lacks our authenticator; and a shard that was deleted as a whole: the heads log of
    the installation, which is checked first, says that it began, and which root it had at which size. It
    can't detect a writer of the database who puts an earlier state of the whole log back. A checkpoint, or
    `heads`, kept outside the database shows that. `whole` False: the heads log from the last verification on.
    Raises Failure STORE_UNAVAILABLE.
    """
    verification = LogVerification(store, tenant, whole=whole)
    heads: dict[str, ShardHead] = {}
    while not verification.done:
        for shard, head in await verification.advance():
            heads[shard] = head
    return verification.verdict(heads)


async def records_to_verify(tx: Transaction, tenant: Tenant) -> int:
    """How many records `verify_log` reads, from the last verification on."""
    known, mark = await ends(tx, [tenant, INSTALLATION]), await _last_mark(tx, tenant)
    total = sum(end.size if isinstance(end, TreeEnd) else end.count for end in known)
    return total - (0 if mark is None else mark.log.size)


class LogVerification:
    """One verification of a tenant's log. Any process goes on with it from its `place`, a text.

    A place has an authenticator over it and the verification's `id`: one that was written by another hand,
    or is another verification's, would skip what it says is walked. The walk begins anew then.
    """

    def __init__(self, store: Store, tenant: Tenant, *, whole: bool, id: str = "", place: str = "") -> None:
        self._store, self._tenant, self._whole, self._id = store, tenant, whole, id
        self.done, self.records, self.read = False, 0, 0  # records of the tenant, and all that were read
        self.flaw: tuple[str, Flaw] | None = None  # in which shard
        self._of, self._after = INSTALLATION, ""  # whose shards, and the last one that is done
        self._log = Frontier()  # the heads log as it was walked
        self._resumed: tuple[str, list[Any]] | None = None  # the shard that was being walked, and the place
        self._names: list[str] | None = None  # of shards that aren't done
        self._walk: TreeWalk | ChainWalk | None = None
        self._span: tuple[int, int] | None = None  # the first and the last number in the shard
        mac, _, content = place.partition(" ")
        if place and hmac.compare_digest(mac, self._mac(content)):
            self._resume(json.loads(content))

    def verdict(self, heads: dict[str, ShardHead]) -> AuditVerification:
        """What was found. Raises RuntimeError while it isn't done."""
        if not self.done:
            raise RuntimeError("the verification isn't done")
        if self.flaw is None:
            return AuditVerification(True, self.records, heads=heads)
        return AuditVerification(False, self.records, self.flaw[0], *self.flaw[1], heads)

    async def advance(self) -> list[tuple[str, ShardHead]]:
        """Check the next page. Returns the shard of the tenant that it ended, if it was good."""
        await asyncio.sleep(0)  # SQLite's statements run on the loop
        if self._walk is None and not await self._enter_next():
            await self._end_of_tenant()
            return []
        walk = self._walk
        assert walk is not None
        before = walk.place.size
        flaw = await walk.advance()
        self.read += max(walk.place.size - before, 0)
        self.records += max(walk.place.size - before, 0) if self._of == self._tenant else 0
        if flaw is None and walk.done:
            flaw = _beyond(walk.end, self._span)
        if flaw is not None:
            self._end_with(walk.end.shard, flaw)
        elif walk.done:
            return self._leave(walk)
        return []

    async def _enter_next(self) -> bool:
        """Begin the walk over the next shard; False: there is none."""
        async with self._store.read() as tx:
            if self._names is None:
                names = {end.shard for end in await ends(tx, [self._of])}
                last = self._order(self._after) if self._after else (False, "")
                self._names = sorted((name for name in names if self._order(name) > last), key=self._order)
            if not self._names:
                return False
            shard = self._names.pop(0)
            end = await _end_of(tx, self._of, shard)
            self._span = await _span_of(tx, self._of, shard)
            place = None
            if self._resumed is not None and self._resumed[0] == shard:
                (_, place), self._resumed = self._resumed, None
            if isinstance(end, ChainEnd):
                self._walk = ChainWalk(self._store, end, None if place is None else ChainPlace(*place))
                return True
            start = None if place is None else _tree_place(place)
            if start is None and (self._of, shard) == (INSTALLATION, HEADS):
                start = await self._start_of_heads(tx, end.size)
        self._walk = TreeWalk(self._store, end, self._log.size, start)
        return True

    def _order(self, shard: str) -> tuple[bool, str]:
        """Heads logs come first: they say which shards there are."""
        return not is_heads_log(self._of, shard), shard

    async def _start_of_heads(self, tx: Transaction, size: int) -> TreePlace | None:
        """Where the walk over the heads log begins: behind what the last verification of the tenant has
        walked, unless the heads of the tenant there aren't those of then."""
        mark = None if self._whole or self._tenant == INSTALLATION else await _last_mark(tx, self._tenant)
        if mark is None or mark.told != await _told(tx, self._tenant, mark.log.size):
            return None
        return TreePlace(mark.log, mark.log.size)

    def _leave(self, walk: TreeWalk | ChainWalk) -> list[tuple[str, ShardHead]]:
        self._after, self._walk = walk.end.shard, None
        if isinstance(walk, TreeWalk) and (self._of, self._after) == (INSTALLATION, HEADS):
            self._log = walk.place.frontier
        return [(self._after, _head_of(walk.end))] if self._of == self._tenant else []

    async def _end_of_tenant(self) -> None:
        async with self._store.read() as tx:
            wrong = await _wrong_shard(tx, self._of)
        if wrong is not None:
            self._end_with(*wrong)
        elif self._of == self._tenant:
            self.done = True
        else:
            self._of, self._after, self._names = self._tenant, "", None

    def _end_with(self, shard: str, flaw: Flaw) -> None:
        if self._of != self._tenant:
            why = f"which shards there are isn't known: in the installation's log {flaw.why}"
            shard, flaw = f"{self._of}/{shard}", flaw._replace(why=why)
        self.flaw, self.done = (shard, flaw), True

    # --- places, so that another process can go on ------------------------------------------

    @property
    def place(self) -> str:
        walk = self._walk
        content = {
            "of": self._of,
            "after": self._after,
            "log": [self._log.size, _text(self._log.peaks)],
            "in": None if walk is None else [walk.end.shard, _place_in(walk)],
            "records": self.records,
        }
        text = json.dumps(content, separators=(",", ":"))
        return f"{self._mac(text)} {text}"

    def _mac(self, place: str) -> str:
        return self._store.ring.keyed_hash("audit verification", self._tenant, self._id, place)

    def _resume(self, content: Mapping[str, Any]) -> None:
        self._of, self._after = Tenant(content["of"]), content["after"]
        self._log = Frontier(content["log"][0], base64.b64decode(content["log"][1]))
        self._resumed = None if content["in"] is None else tuple(content["in"])
        self.records = content["records"]

    async def mark(self, tx: Transaction) -> dict[str, object]:
        """What the record of a verification that found nothing says for the next one."""
        told = await _told(tx, self._tenant, self._log.size)
        return {"heads": self._log.size, "peaks": _text(self._log.peaks), "told": told}


def _place_in(walk: TreeWalk | ChainWalk) -> list[Any]:
    if isinstance(walk, ChainWalk):
        return [*walk.place]
    frontier, good, head = walk.place
    at = None if head is None else [head[0].isoformat(), head[1]]
    return [frontier.size, _text(frontier.peaks), good, at]


def _tree_place(place: list[Any]) -> TreePlace:
    size, peaks, good, head = place
    at = None if head is None else (datetime.fromisoformat(head[0]), head[1])
    return TreePlace(Frontier(size, base64.b64decode(peaks)), good, at)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


# --- what the last verification has left ------------------------------------------------------


class _Mark(NamedTuple):
    """The heads log as far as a verification has walked it, and a hash over the tenant's heads there."""

    log: Frontier
    told: str


async def _last_mark(tx: Transaction, tenant: Tenant) -> _Mark | None:
    """Of the newest record of a verification that found nothing. A gateway's isn't believed."""
    mine = columns_equal(AuditRow, tenant=tenant, object=tenant, action=AuditAction.LOG_VERIFIED.value)
    query = select(_AUDIT.shard, _AUDIT.body).where(mine, text(NO_LEASE_CONDITION))
    for row in await fetch_all(tx.connection, query.order_by(_AUDIT.at.desc()).limit(_MARKS)):
        with suppress(ValueError, KeyError, TypeError):  # it isn't verified yet
            detail = {} if is_of_gateways(row["shard"]) else detail_of(row["body"])
            log = Frontier(detail["heads"], base64.b64decode(detail["peaks"]))
            if detail["ok"] is True and log.is_whole:
                return _Mark(log, detail["told"])
    return None


async def _told(tx: Transaction, tenant: Tenant, size: int) -> str:
    """A hash over the newest head of each tree of the tenant among the first `size` records of the heads
    log, by its index."""
    births = (await births_of(tx, tenant, before=size)).born
    told = hashlib.sha256()
    for name in sorted(f"{of}/{shard}" for of, shard in births):
        mine = columns_equal(AuditRow, tenant=INSTALLATION, object=name, shard=HEADS)
        query = select(_AUDIT.body).where(mine, text(NO_LEASE_CONDITION), _AUDIT.seq < size)
        row = await fetch_first(tx.connection, query.order_by(_AUDIT.at.desc(), _AUDIT.seq.desc()).limit(1))
        body = "" if row is None else row["body"] or ""
        told.update(leaf_hash(f"{name}\n{body}".encode()))
    return told.hexdigest()


# --- which shards there are -------------------------------------------------------------------


async def _end_of(tx: Transaction, tenant: Tenant, shard: str) -> End:
    """The end of a shard; of one that has gone meanwhile an empty one."""
    for end in await ends(tx, [tenant], shard=shard):
        return end
    return TreeEnd(tenant, shard, 0, b"", None)


async def _span_of(tx: Transaction, tenant: Tenant, shard: str) -> tuple[int, int] | None:
    """The first and the last number of the records of a shard."""
    numbers = select(_AUDIT.seq).where(_AUDIT.tenant == tenant, _AUDIT.shard == shard).limit(1)
    first = await fetch_first(tx.connection, numbers.order_by(_AUDIT.seq))
    last = await fetch_first(tx.connection, numbers.order_by(_AUDIT.seq.desc()))
    return None if first is None or last is None else (first["seq"], last["seq"])


def _head_of(end: End) -> ShardHead:
    if isinstance(end, TreeEnd):
        return ShardHead(end.size, end.frontier.root.hex())
    return ShardHead(end.count, end.last_hash)


def _beyond(end: End, span: tuple[int, int] | None) -> Flaw | None:
    """A record before the first, or beyond the recorded end."""
    if span is None:
        return None
    first, last = (0, end.size - 1) if isinstance(end, TreeEnd) else (1, end.count)
    if span[0] < first:
        return Flaw(span[0], FlawKind.ADDED, "there are records before the first")
    if span[1] > last:
        return Flaw(span[1], FlawKind.ADDED, "there are records beyond the recorded end")
    return None


async def _wrong_shard(tx: Transaction, tenant: Tenant) -> tuple[str, Flaw] | None:
    """The first shard that has no end, that is missing, that Evergrant never began, or that isn't as it
    ended. The records that tell it are good by themselves."""
    ends_of = {end.shard: end for end in await ends(tx, [tenant])}
    async for shard in _shards_with_records(tx, tenant):
        if shard not in ends_of:
            span = await _span_of(tx, tenant, shard)
            last = 0 if span is None else span[1]
            return shard, Flaw(last, FlawKind.ADDED, "there are records beyond the recorded end: it has none")
    born = {shard for _, shard in (await births_of(tx, tenant)).born}
    known = {shard for shard in ends_of if not is_heads_log(tenant, shard)}
    if tenant == INSTALLATION:  # the births of its chains were never recorded
        born |= {shard for shard in known if isinstance(ends_of[shard], ChainEnd)}
    elif not born and await tx.tenants.to_change(tenant) is not None:
        why = "the tenant has begun, and no shard of it is known"
        return f"{INSTALLATION}/{HEADS}", Flaw(0, FlawKind.GONE, why)
    for shard in sorted(born ^ known):
        if shard in born:
            return shard, Flaw(0, FlawKind.GONE, "all its records were deleted")
        return shard, Flaw(0, FlawKind.UNKNOWN, "Evergrant never began this shard")
    return await _chain_put_back(tx, tenant, [end for end in ends_of.values() if isinstance(end, ChainEnd)])


async def _shards_with_records(tx: Transaction, tenant: Tenant) -> AsyncGenerator[str]:
    """By name, each by one look at the key: a count would read every record."""
    shard = ""
    while True:
        query = select(_AUDIT.shard).where(_AUDIT.tenant == tenant, _AUDIT.shard > shard)
        row = await fetch_first(tx.connection, query.order_by(_AUDIT.shard).limit(1))
        if row is None:
            return
        shard = row["shard"]
        yield shard


async def _chain_put_back(
    tx: Transaction, tenant: Tenant, chains: Sequence[ChainEnd]
) -> tuple[str, Flaw] | None:
    """The first chain that isn't as a record in a tree says that it has ended."""
    for chain in sorted(chains):
        of_chain = columns_equal(
            AuditRow, tenant=tenant, object=chain.shard, action=AuditAction.CHAIN_ENDED.value
        )
        query = select(_AUDIT.body).where(of_chain, text(NO_LEASE_CONDITION))
        for row in await fetch_all(tx.connection, query):
            detail = detail_of(row["body"])
            if _head_of(chain) != (detail["count"], detail["last_hash"]):
                why = f"the chain had {detail['count']} records when it was closed"
                return chain.shard, Flaw(detail["count"], FlawKind.FORGED_END, why)
    return None
