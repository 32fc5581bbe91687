"""How the target has the source's rows: range by range, those alone whose digests differ.

Each pass over the tables leads to a Merkle root (RFC 6962, section 2.1) over the digests of the ranges: the
source's, each of which was compared with that of the rows here.
"""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, cast

import httpx2

from activities.support.transactions import commit_with_retries
from evergrant_server.audit.merkle_tree import Frontier
from evergrant_server.core.cells.moves import COPIES, RowRange, TenantMove
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.store.authority.authenticators import authority_broken
from evergrant_server.store.cells.remaking import RemadeRows
from evergrant_server.store.cells.rows import moved_tables

Rows = list[dict[str, Any]]  # as the source answers

_KEY_TABLE = "key"
_REPLACED = (
    "has a key that came after the offer: the tenant's keys were replaced. Undo the move, and offer it anew"
)


class OtherCell:
    """The source's API, as its operator's offer opens it."""

    def __init__(self, egress: Egress, move: TenantMove, secret: str) -> None:
        self._egress = egress
        self._base = f"{move.peer}/v1/moves/{move.tenant}/{move.id}"
        self._headers = {"authorization": f"Bearer {secret}", "accept": "application/json"}

    async def ask(self, step: str, **body: Any) -> dict[str, Any]:
        """One step. Raises Failure with the source's code, PROVIDER_UNREACHABLE or PROVIDER_ERROR."""
        try:
            async with self._egress.client(headers=self._headers) as http:
                response = await http.post(f"{self._base}/{step}", json=body)
                answer = response.json()
        except (httpx2.HTTPError, ValueError, OSError) as error:
            why = f"the other cell doesn't answer {step} ({type(error).__name__})"
            raise Failure(ErrorCode.PROVIDER_UNREACHABLE, why) from None
        members = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
        if response.status_code == 200:
            return members
        code = str(members.get("code", ""))
        known = ErrorCode(code) if code in set(ErrorCode) else ErrorCode.PROVIDER_ERROR
        raise Failure(known, f"the other cell refuses {step} ({response.status_code} {known})")


class Copied(NamedTuple):
    """A pass over tables: each one's ranges, and how many ranges differed."""

    ranges: Mapping[str, list[RowRange]]
    differed: int

    def replaced_by(self, later: "Copied") -> "Copied":
        """With the ranges of a later pass over some of the tables."""
        return Copied({**self.ranges, **later.ranges}, later.differed)

    @property
    def counts(self) -> dict[str, int]:
        numbers = {name: sum(item.rows for item in ranges) for name, ranges in self.ranges.items()}
        return {name: number for name, number in sorted(numbers.items()) if number}

    @property
    def root(self) -> str:
        """The Merkle root over the ranges' digests, in hex, tables in their order."""
        leaves = (bytes.fromhex(item.digest) for name in moved_tables() for item in self.ranges.get(name, ()))
        return Frontier().appended(leaves).root.hex()


class Copier:
    """Compares the tenant's rows with the source's, and copies what differs."""

    def __init__(self, store: Store, cell: OtherCell, remade: RemadeRows, move: TenantMove) -> None:
        self._store, self._cell, self._remade = store, cell, remade
        self._move, self._tenant = move, move.tenant

    async def copy(self, tables: Collection[str]) -> Copied:
        """One pass over these tables, parents first. Raises Failure, AUTHORITY_BROKEN among them."""
        ranges, differed = dict[str, list[RowRange]](), 0
        for name in moved_tables():
            if name in tables:
                ranges[name], some = await self._table(name)
                differed += some
        return Copied(ranges, differed)

    async def _table(self, name: str) -> tuple[list[RowRange], int]:
        ranges, differed, after = list[RowRange](), 0, ""
        following: asyncio.Task[list[RowRange]] | None = asyncio.create_task(self._ranges(name, after))
        while following is not None:
            part = await following
            begin, end = after, part[-1].last
            # the source makes the next digests while these are compared
            following = None if end is None else asyncio.create_task(self._ranges(name, end))
            try:
                differed += await self._compare(name, begin, part)
            except BaseException:
                if following is not None:
                    following.cancel()
                raise
            ranges += part
            after = end or ""
        return ranges, differed

    async def _ranges(self, name: str, after: str) -> list[RowRange]:
        answer = await self._cell.ask("ranges", table=name, after=after)
        return [RowRange.model_validate(item) for item in answer["ranges"]]

    async def _compare(self, name: str, after: str, part: list[RowRange]) -> int:
        """Copy those of the ranges that differ; returns how many."""
        stale: list[tuple[str, str | None]] = []
        async with self._store.read() as tx:
            for item in part:
                if await tx.moved_rows.range_of(self._tenant, name, after, item.last) != item:
                    stale.append((after, item.last))
                after = item.last or ""
        for begin, end in stale:
            await self._copy_range(name, begin, end)
        return len(stale)

    async def _copy_range(self, name: str, begin: str, last: str | None) -> None:
        rest: str | None = begin
        while rest is not None:
            first = rest
            answer = await self._cell.ask("rows", table=name, after=first, last=last)
            rest, rows = answer["rest"], cast("Rows", answer["rows"])
            end = last if rest is None else rest

            async def write(
                tx: Transaction, *, first: str = first, end: str | None = end, rows: Rows = rows
            ) -> None:
                await tx.tenant_moves.require_state(self._move, *COPIES)  # and not a worker that was followed
                await self._require_known_keys(tx, name, rows)
                made = await self._remade.remade(tx.moved_rows, self._tenant, name, rows)
                await tx.moved_rows.put(self._tenant, name, first, end, made)

            await self._write(name, write)

    async def _write(self, name: str, write: Any) -> None:
        try:
            async with self._store.write() as tx:
                await write(tx)
        except Failure as failure:
            if failure.code is not ErrorCode.STORE_CONFLICT:
                raise
            # a name stands in a row of another range still: the next pass copies the table whole
            await commit_with_retries(self._store, lambda tx: self._clear(tx, name))

    async def _clear(self, tx: Transaction, name: str) -> None:
        await tx.tenant_moves.require_state(self._move, *COPIES)
        await tx.moved_rows.clear(self._tenant, name)

    async def _require_known_keys(self, tx: Transaction, name: str, rows: Rows) -> None:
        if name != _KEY_TABLE:
            return
        for row in rows:
            if not row["connection_id"] and not await tx.moved_keys.has(self._tenant, row["id"]):
                raise authority_broken(name, str(row["id"]), _REPLACED)
