"""The outbox: deliveries written in the transaction that made them true, in order per target."""

import hmac
import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from pydantic import ValidationError
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Index,
    Integer,
    Select,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import aliased
from sqlmodel import Field, col

from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import OutboxId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import BULK, OutboxKind, OutboxMessage
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.crypto.envelope import encode_parts
from evergrant_server.crypto.request_proof import proof_key, prove_request, roles_that_say
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    Repository,
    Values,
    already_exists,
    column_values,
    columns_equal,
    fetch_all,
    insert,
    insert_all,
    take_turns,
)
from evergrant_server.store.erasure.orders import is_held

REFUSED = ErrorCode.AUTHORITY_BROKEN.value  # the last error of a row that isn't Evergrant's: none delivers it


class OutboxRow(columns.Row, table=True):
    __table_args__ = (
        Index(None, "id", unique=True),
        columns.partial_index("ix_outbox_undelivered", "target", "seq", where="delivered_at IS NULL"),
        columns.partial_index("ix_outbox_delivered", "delivered_at", where="delivered_at IS NOT NULL"),
        columns.partial_index("ix_outbox_done", "target", where="delivered_at IS NOT NULL"),
        columns.partial_index("ix_outbox_refused", "id", where=f"last_error = '{REFUSED}'"),
        {"sqlite_autoincrement": True},
    )
    tenant: str
    seq: int | None = Field(default=None, primary_key=True, sa_type=columns.BIG_INTEGER)  # pyright: ignore[reportArgumentType]  # an instance carries the variant
    id: str
    kind: str
    target: str
    name: str
    payload: dict[str, Any] = columns.json()
    created_at: datetime = columns.timestamp()
    attempts: int
    next_at: datetime | None = columns.timestamp()
    last_error: str | None = None
    claimed_by: str | None = None
    claimed_until: datetime | None = columns.timestamp()
    delivered_at: datetime | None = columns.timestamp()
    revision: int
    mac: str | None = None


def outbox_mac(ring: KeyRing, row: Values, role: Role | None = None) -> str:
    """The authenticator of what a row has delivered, and to whom, by a process of `role` (None: this one)."""
    at: datetime = row["created_at"]
    payload = json.dumps(row["payload"], sort_keys=True, separators=(",", ":"))
    parts = (row["tenant"], row["id"], row["kind"], row["target"], row["name"], payload)
    key = proof_key(ring, role or ring.role)
    return hmac.digest(key, encode_parts("outbox", *parts, at.astimezone(UTC).isoformat()), "sha256").hex()


def is_authentic(ring: KeyRing, row: Values) -> bool:
    """True when a process whose role says such things wrote the row. Raises ValueError and the like for one
    whose values can't be computed with."""
    roles = roles_that_say(row["name"] if row["kind"] == OutboxKind.SIGNAL else row["kind"])
    made = row["mac"] or ""
    return any(hmac.compare_digest(made, outbox_mac(ring, row, role)) for role in roles)


class BrokenMessage(NamedTuple):
    """A row that isn't Evergrant's, and the failure that names it."""

    seq: int
    tenant: Tenant
    failure: Failure


class Waiting(NamedTuple):
    """What a look at the outbox tells a relay."""

    any: bool  # messages that are not delivered, postponed ones included
    due: bool


_UNDELIVERED = col(OutboxRow.delivered_at).is_(None)
_UNREADABLE = (ArithmeticError, AttributeError, TypeError, ValueError)  # of values of another type
_MOST_WAKES = 500  # claimed beside the messages whose turn it is
_FARTHEST = timedelta(minutes=10)  # a relay puts nothing off for longer; see `_due`


class Outbox(Repository):
    """Messages of one transaction. At least once, and in order for each target."""

    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    async def add(self, message: OutboxMessage) -> None:
        """Add a delivery. Raises Failure ALREADY_EXISTS for an id that is there."""
        if not await self.add_once(message):
            raise already_exists(f"Message {message.id}")

    async def add_once(self, message: OutboxMessage) -> bool:
        """Add a delivery; False when its id is there already, delivered or not.

        Its payload gets a proof of who requested it: a row that is written otherwise has none.
        """
        # numbers are given at insert, not at commit: without turns a lower one could become visible later
        await take_turns(self._connection, message.target)
        return await insert(self._connection, OutboxRow, self._values(message))

    async def add_first(self, messages: Collection[OutboxMessage]) -> None:
        """Add the first messages of targets that no other transaction knows: none has to wait its turn."""
        await insert_all(self._connection, OutboxRow, [self._values(message) for message in messages])

    async def claim(
        self,
        by: str,
        now: datetime,
        hold: timedelta,
        limit: int = 50,
        *,
        bulk: bool = True,
        refuse: Callable[[Failure], None] = lambda _: None,
    ) -> list[OutboxMessage]:
        """Take messages that are due, for `hold`; the oldest undelivered one of each target alone.

        Those named BULK come last, and without `bulk` not at all.

        Tenants come in turn: however many messages one has, another's first is among the first.
        Any number of relays may claim at once: none gets what another holds. A message that
        was neither delivered nor postponed is claimable again after `hold`. Wakes of one webhook come
        together, beyond `limit`: one delivery is enough for all of them. One that this version can't
        read is put off for as long: a relay of a newer version may read it. One that isn't Evergrant's is
        never delivered and holds up no other; `refuse` is called with the failure that names it.
        """
        at = _moments(now, hold)
        picked = await fetch_all(self._connection, _picked(bulk), {**at, "limit": limit})
        if not picked:
            return []
        seqs = [row["seq"] for row in picked]
        others = await fetch_all(self._connection, _other_wakes(), {**at, "seqs": seqs})
        seqs += [row["seq"] for row in others]
        mine = col(OutboxRow.seq).in_(seqs)
        taken_by: Values = {"claimed_by": by, "claimed_until": now + hold}
        await self._connection.execute(update(OutboxRow).where(mine).values({**taken_by, **_NEXT}))
        claimed: list[OutboxMessage] = []
        for row in await self._read(mine):
            if isinstance(row, BrokenMessage):
                await self._refuse(row.seq, now)
                refuse(row.failure)
                continue
            try:
                claimed.append(OutboxMessage.model_validate(row))
            except ValidationError:
                await self.postpone(OutboxId(row["id"]), "this version can't read it", now + hold)
        return claimed

    async def waiting(self, now: datetime, hold: timedelta, *, bulk: bool = True) -> "Waiting":
        """Whether messages are undelivered, and whether `claim` would take one: reads only those."""
        (row,) = await fetch_all(self._connection, _waiting(bulk), _moments(now, hold))
        return Waiting(**row)

    async def mark_delivered(self, ids: Collection[OutboxId], at: datetime) -> None:
        """Mark messages as delivered; a second time changes nothing."""
        done: Values = {"delivered_at": at, "claimed_until": None, "last_error": None}
        mine = col(OutboxRow.id).in_(ids)
        await self._run(update(OutboxRow).where(mine, _UNDELIVERED).values({**done, **_NEXT}))

    async def postpone(self, id: OutboxId, error: str, next_at: datetime) -> None:
        """Give a claimed message back, to be tried from `next_at` on. `error` holds no secret."""
        later: Values = {
            "attempts": col(OutboxRow.attempts) + 1,
            "last_error": error,
            "next_at": next_at,
            "claimed_by": None,
            "claimed_until": None,
        }
        await self._change(id, later)

    async def release(self, ids: Collection[OutboxId], by: str) -> None:
        """Give back what a relay has claimed and won't deliver, to be claimed at once."""
        free: Values = {"claimed_by": None, "claimed_until": None}
        mine = col(OutboxRow.id).in_(ids) & (col(OutboxRow.claimed_by) == by)
        await self._run(update(OutboxRow).where(mine, _UNDELIVERED).values({**free, **_NEXT}))

    async def broken(self) -> list[BrokenMessage]:
        """The rows that were refused or would be."""
        kept = or_(_UNDELIVERED, col(OutboxRow.last_error) == REFUSED)
        return [row for row in await self._read(kept) if isinstance(row, BrokenMessage)]

    async def accept(self, ids: Collection[str] | None = None) -> list[str]:
        """Write the authenticators of rows as they are (None: of all); what was refused is delivered."""
        kept = select(OutboxRow).where(or_(_UNDELIVERED, col(OutboxRow.last_error) == REFUSED))
        chosen = kept if ids is None else kept.where(col(OutboxRow.id).in_(ids))
        rows = await fetch_all(self._connection, chosen)
        for row in rows:
            again: Values = {"delivered_at": None, "last_error": None} if row["last_error"] == REFUSED else {}
            mine = update(OutboxRow).where(columns_equal(OutboxRow, id=row["id"]))
            values: Values = {**again, "mac": outbox_mac(self._ring, row), **_NEXT}
            await self._connection.execute(mine.values(values))
        return [row["id"] for row in rows]

    async def targets_with_undelivered(self, targets: list[str]) -> set[str]:
        """Those of these targets for which a message is not delivered yet."""
        query = select(col(OutboxRow.target)).where(_UNDELIVERED, col(OutboxRow.target).in_(targets))
        return set((await self._connection.execute(query)).scalars())

    async def depth(self, now: datetime) -> int:
        """The number of undelivered messages written by `now`, postponed ones included."""
        written = col(OutboxRow.created_at) <= now
        counted = select(func.count()).select_from(OutboxRow).where(_UNDELIVERED, written)
        return (await self._connection.execute(counted)).scalar_one()

    async def oldest_undelivered_at(self) -> datetime | None:
        """When the oldest undelivered message was written."""
        first = select(func.min(col(OutboxRow.created_at))).where(_UNDELIVERED)
        return (await self._connection.execute(first)).scalar_one_or_none()

    async def prune(self, before: datetime, limit: int = 1000, *, now: datetime) -> int:
        """Delete messages delivered before this moment, `limit` at the most; returns how many. Those of a
        tenant under a legal hold stay."""
        ripe = (col(OutboxRow.delivered_at) < before) & ~is_held(col(OutboxRow.tenant), None, now)
        old = select(col(OutboxRow.seq)).where(ripe).limit(limit)
        return (await self._connection.execute(delete(OutboxRow).where(col(OutboxRow.seq).in_(old)))).rowcount

    def _values(self, message: OutboxMessage) -> Values:
        values = column_values(message, payload=self._proven_payload(message), revision=1)
        values["mac"] = outbox_mac(self._ring, values)
        return values

    def _proven_payload(self, message: OutboxMessage) -> dict[str, Any]:
        if "context" not in message.payload:
            return message.payload
        context = RequestContext.model_validate(message.payload["context"])
        name = message.name or message.kind
        proven = prove_request(self._ring, context, message.target, name, message.created_at)
        of_request = {"context": proven.model_dump(mode="json")}
        payload = {**message.payload, **of_request}
        if events := message.payload.get("pending_events"):  # the run acts on them in the same name
            payload["pending_events"] = [{**event, **of_request} for event in events]
        return payload

    async def _read(self, which: ColumnElement[bool]) -> list[Values | BrokenMessage]:
        """The rows in order. Each is read by itself if one can't be: SQLite keeps any value in any column."""
        query = select(OutboxRow).order_by(col(OutboxRow.seq))
        try:
            return [self._checked(row) for row in await fetch_all(self._connection, query.where(which))]
        except _UNREADABLE:
            pass
        key = (col(OutboxRow.seq), col(OutboxRow.tenant), col(OutboxRow.id))
        read: list[Values | BrokenMessage] = []
        for name in await fetch_all(self._connection, select(*key).where(which).order_by(key[0])):
            try:
                (row,) = await fetch_all(self._connection, query.where(key[0] == name["seq"]))
                read.append(self._checked(row))
            except _UNREADABLE:
                read.append(_broken(name))
        return read

    def _checked(self, row: Values) -> Values | BrokenMessage:
        return row if is_authentic(self._ring, row) else _broken(row)

    async def _refuse(self, seq: int, now: datetime) -> None:
        """Keep it as one that is done with, so that what comes behind it is delivered."""
        done: Values = {"delivered_at": now, "claimed_until": None, "last_error": REFUSED, **_NEXT}
        await self._run(update(OutboxRow).where(columns_equal(OutboxRow, seq=seq)).values(done))

    async def _change(self, id: OutboxId, values: Values) -> None:
        statement = update(OutboxRow).where(columns_equal(OutboxRow, id=id), _UNDELIVERED)
        if (await self._connection.execute(statement.values({**values, **_NEXT}))).rowcount == 1:
            return
        query = select(exists().where(columns_equal(OutboxRow, id=id)))
        if not (await self._connection.execute(query)).scalar_one():
            raise Failure(ErrorCode.NOT_FOUND, f"{id} doesn't exist.")


def _broken(row: Values) -> BrokenMessage:
    id = row["id"]
    why = f"{id} in outbox wasn't written by Evergrant, or was changed."
    failure = Failure(ErrorCode.AUTHORITY_BROKEN, why, table="outbox", row=id)
    return BrokenMessage(row["seq"], Tenant(row["tenant"]), failure)


_NEXT: Values = {"revision": col(OutboxRow.revision) + 1}


# Relays send these again and again: each is built once.


def _moments(now: datetime, hold: timedelta) -> Values:
    """The parameters of `_due`.

    A time farther away than a relay ever sets comes from a clock that was ahead, and is ignored:
    otherwise the message and all behind it would wait until that time."""
    return {"now": now, "farthest_next": now + _FARTHEST, "farthest_claim": now + hold + CLOCK_SKEW}


@cache
def _waiting(with_bulk: bool) -> Select[bool, bool]:
    due = select(col(OutboxRow.seq)).where(_claimable(with_bulk)).exists()
    return select(exists().where(_UNDELIVERED).label("any"), due.label("due"))


@cache
def _picked(with_bulk: bool) -> Select[int | None]:
    """The first due message of each tenant, then the second of each, and so on; bulk in the same way last."""
    bulk, due = col(OutboxRow.name) == BULK, _claimable(with_bulk)
    turn = func.row_number().over(partition_by=(col(OutboxRow.tenant), bulk), order_by=col(OutboxRow.seq))
    in_turn = select(col(OutboxRow.seq), bulk.label("bulk"), turn.label("turn")).where(due).subquery()
    claimable = _UNDELIVERED & _due()  # again: another relay may have claimed it meanwhile
    return (
        select(col(OutboxRow.seq))
        .join(in_turn, in_turn.c.seq == col(OutboxRow.seq))
        .where(claimable)
        .order_by(in_turn.c.bulk, in_turn.c.turn, in_turn.c.seq)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(of=OutboxRow, skip_locked=True)
    )


@cache
def _other_wakes() -> Select[int | None]:
    """Further due wakes of the webhooks that the messages `seqs` wake."""
    seqs: BindParameter[int] = bindparam("seqs", expanding=True)
    woken, earlier, wake = _without_id, aliased(OutboxRow), OutboxKind.WAKE_WEBHOOK.value
    webhooks = select(woken(col(earlier.target))).where(col(earlier.seq).in_(seqs), col(earlier.kind) == wake)
    due = _UNDELIVERED & _due() & (col(OutboxRow.kind) == wake)
    others = due & woken(col(OutboxRow.target)).in_(webhooks) & col(OutboxRow.seq).not_in(seqs)
    query = select(col(OutboxRow.seq)).where(others).order_by(col(OutboxRow.seq)).limit(_MOST_WAKES)
    return query.with_for_update(of=OutboxRow, skip_locked=True)


def _without_id(target: Any) -> ColumnElement[str]:
    """The workflow that a wake's target is, without the message's id behind it."""
    return func.substr(target, 1, func.length(target) - len(f":{new_id('out')}"))


def _claimable(with_bulk: bool) -> ColumnElement[bool]:
    due = _UNDELIVERED & _due() & ~_behind_another()
    return due if with_bulk else due & (col(OutboxRow.name) != BULK)


def _due() -> ColumnElement[bool]:
    """By `_moments`."""
    now: BindParameter[datetime] = bindparam("now")
    next_at, until = col(OutboxRow.next_at), col(OutboxRow.claimed_until)
    postponed = or_(next_at.is_(None), next_at <= now, next_at > bindparam("farthest_next"))
    return postponed & or_(until.is_(None), until <= now, until > bindparam("farthest_claim"))


def _behind_another() -> ColumnElement[bool]:
    """An earlier message for the same target is not delivered yet."""
    earlier = aliased(OutboxRow)
    return exists().where(
        col(earlier.target) == col(OutboxRow.target),
        col(earlier.seq) < col(OutboxRow.seq),
        col(earlier.delivered_at).is_(None),
    )
