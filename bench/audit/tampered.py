"""Ten tampered copies of one log: each is named, by the verifier or by what was kept elsewhere.

A copy is a file of SQLite, or a database of PostgreSQL made from a template.
"""

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import asyncpg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from evergrant.audit.notes import Checkpoint, NoteError, VerifierKey, hash_lines
from evergrant.audit.tree import ProofError
from evergrant.audit.witness import Witness
from sqlalchemy import text

from bench.audit.costs import TENANT, claims, filled
from bench.processes import postgresql, sqlite
from evergrant_server import audit
from evergrant_server.api.audit_proofs import receipt_view
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.audit.checkpoints.notes import verifier_key
from evergrant_server.audit.checkpoints.proofs import Extension, extension, receipt
from evergrant_server.core.clock import SystemClock
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.database import schema

LOG = "evergrant.example/audit"
SHARD, SMALL = "bench-1", "bench-2"
_STEPS = 4  # in which the log is written, with a checkpoint after each
_FORGED_ROOT = "A" * 43 + "="
_OF_LOG = ("audit", "audit_tree", "audit_node", "audit_head", "audit_checkpoint", "audit_filed")


class Caught(NamedTuple):
    """One row of the table: which copy, what named it, where, and the seconds that took."""

    copy: str
    by: str
    place: str
    seconds: float


@dataclass
class Databases:
    """One database at a time, and copies of it."""

    key_file: Path
    folder: Path
    empty: Callable[[], Awaitable[str]] | None  # PostgreSQL's
    made: int = field(default=0)

    async def first(self) -> str:
        if self.empty is not None:
            return await self.empty()
        (self.folder / "first").mkdir()
        return sqlite(self.folder / "first")

    async def copy(self, url: str) -> str:
        """A copy of a database that nobody has open."""
        self.made += 1
        if self.empty is None:
            target = self.folder / f"copy-{self.made}"
            target.mkdir()
            shutil.copy(url.removeprefix("sqlite:///"), target / "evergrant.db")
            return sqlite(target)
        head, _, host = url.partition("?")
        root, _, name = head.rpartition("/")
        await self._run(host, f"CREATE DATABASE copy_{self.made} TEMPLATE {name}")
        return f"{root}/copy_{self.made}?{host}"

    async def drop(self, url: str) -> None:
        if self.empty is None:
            shutil.rmtree(Path(url.removeprefix("sqlite:///")).parent)
            return
        head, _, host = url.partition("?")
        await self._run(host, f"DROP DATABASE {head.rpartition('/')[2]}")

    @staticmethod
    async def _run(host: str, statement: str) -> None:
        connection = await asyncpg.connect(
            host=host.removeprefix("host="), user="postgres", database="postgres"
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    @asynccontextmanager
    async def store(self, url: str) -> AsyncIterator[Store]:
        store = await Store.open(url, KeyRing.open(self.key_file, Role.WORKER), SystemClock())
        try:
            yield store
        finally:
            await store.close()


@dataclass(frozen=True)
class Kept:
    """What is kept elsewhere: the log's key, a checkpoint of when the log was three quarters as long, the end
    of its tree then, a copy of the database of before; and a witness that has signed the newest one."""

    key: VerifierKey
    checkpoint: Checkpoint
    end: dict[str, Any]
    older: str
    witness: Witness
    records: int


async def advance(store: Store) -> None:
    await HeadsLog(store, SystemClock(), LOG).advance()


async def written(databases: Databases, records: int) -> tuple[str, Kept]:
    """A log of as many leases in one shard, and some in a small one, with a checkpoint after each quarter."""
    url = await databases.first()
    await schema.upgrade(url)
    older, kept, end = "", None, dict[str, Any]()
    for step in range(1, _STEPS + 1):
        async with databases.store(url) as store:
            await filled(store, SHARD, claims(), records * step // _STEPS)
            await filled(store, SMALL, claims(), 10 * step)
            await advance(store)
            if step == _STEPS - 1:
                async with store.read() as tx:
                    kept = await extension(tx, 0)
                    row = "SELECT size, peaks, mac FROM audit_tree WHERE shard = :shard"
                    end = dict((await tx.connection.execute(text(row), {"shard": SHARD})).mappings().one())
        if step == _STEPS - 2:
            older = await databases.copy(url)
    assert kept is not None
    key = VerifierKey.parse(verifier_key(kept.key.name, kept.key.public))
    private = Ed25519PrivateKey.generate()
    witness = Witness("witness.example/w1", private, [key], databases.folder / "witness.db")
    checkpoint = Checkpoint.parse(kept.checkpoint.note)
    assert witness.add_checkpoint(_request(0, kept)).status == HTTPStatus.OK
    return url, Kept(key, checkpoint, end, older, witness, records)


def _request(older: int, newest: Extension) -> str:
    """As a worker asks a witness."""
    return f"old {older}\n{hash_lines(newest.path)}\n{newest.checkpoint.note}"


# --- what is done to a copy -----------------------------------------------------------------


async def execute(store: Store, *statements: str, **values: Any) -> None:
    async with store.write() as tx:
        for statement in statements:
            named = {name: value for name, value in values.items() if f":{name}" in statement}
            await tx.connection.execute(text(statement), named)


_MINE = f"tenant = '{TENANT}' AND shard = '{SHARD}'"


def _statements(kept: Kept) -> dict[str, tuple[str, ...]]:
    """Of each copy that the verifier names by itself. The end of a tree that was cut is Evergrant's own."""
    number = kept.records // 2
    at = f"UPDATE audit SET {{}} WHERE {_MINE} AND seq {{}}"
    end = f"UPDATE audit_tree SET size = :size, peaks = :peaks, mac = :mac WHERE {_MINE}"
    tables = ("audit", "audit_tree", "audit_node", "audit_head")
    return {
        "edited": (at.format("object = 'con_other'", f"= {number}"),),
        "swapped": (
            at.format("seq = -1", f"= {number}"),
            at.format(f"seq = {number}", f"= {number + 1}"),
            at.format(f"seq = {number + 1}", "= -1"),
        ),
        "deleted": (f"DELETE FROM audit WHERE {_MINE} AND seq = {number}",),
        "cut, with its end": (
            f"DELETE FROM audit WHERE {_MINE} AND seq >= :size",
            f"DELETE FROM audit_node WHERE {_MINE}",
            end,
        ),
        "renumbered, with its end": (
            f"DELETE FROM audit WHERE {_MINE} AND seq = {number}",
            at.format("seq = -seq", f"> {number}"),
            at.format("seq = -seq - 1", "< 0"),
            f"UPDATE audit_tree SET size = size - 1 WHERE {_MINE}",
        ),
        "a shard gone with its head": tuple(f"DELETE FROM {name} WHERE shard = '{SMALL}'" for name in tables),
    }


async def _rewrite(store: Store, kept: Kept) -> None:
    """Write the log anew with every key of the installation: all hashes are valid."""
    await execute(store, *(f"DELETE FROM {name}" for name in _OF_LOG))
    for step in range(1, _STEPS + 1):
        await filled(store, SHARD, claims(), kept.records * step // _STEPS)
        await filled(store, SMALL, claims(), 10 * step)
        await advance(store)


# --- what names it --------------------------------------------------------------------------


async def by_verifier(store: Store, kept: Kept) -> str:
    """Where the log is wrong, as the verifier says."""
    verdict = await audit.verify_log(store, TENANT)
    return "" if verdict.ok else f"{verdict.shard}/{verdict.seq}: {verdict.kind}"


async def by_checkpoint(store: Store, kept: Kept) -> str:
    """Why the log isn't the one of the kept checkpoint, as `evergrant audit checkpoint --kept` says."""
    async with store.read() as tx:
        newest = await extension(tx, kept.checkpoint.size)
    if newest is None:
        return f"the log has fewer heads than {kept.checkpoint.size}"
    try:
        checkpoint = Checkpoint.parse(newest.checkpoint.note)
        checkpoint.require_signed(kept.key)
        checkpoint.require_extends(kept.checkpoint, hash_lines(newest.path).split())
    except (NoteError, ProofError) as error:
        return str(error)
    return ""


async def by_witness(store: Store, kept: Kept) -> str:
    """Why the witness signs no checkpoint of this log."""
    size = kept.checkpoint.size
    while True:
        async with store.read() as tx:
            newest = await extension(tx, size)
        assert newest is not None
        answer = kept.witness.add_checkpoint(_request(size, newest))
        if answer.status != HTTPStatus.CONFLICT:
            why = f"{answer.status.value}: {answer.body.strip()}"
            return "" if answer.status == HTTPStatus.OK else why
        size = int(answer.body)  # that it has signed meanwhile


Check = Callable[[Store, Kept], Awaitable[str]]


async def caught(copy: str, by: str, store: Store, kept: Kept, check: Check) -> Caught:
    """Raises AssertionError for a copy that passes."""
    began = perf_counter()
    place = await check(store, kept)
    assert place, f"{copy}: nothing was found by {by}"
    return Caught(copy, by, place, perf_counter() - began)


async def ten_copies(databases: Databases, url: str, kept: Kept) -> list[Caught]:
    """Tamper with a copy each, and have it named."""
    rows: list[Caught] = []
    for name, statements in _statements(kept).items():
        copy = await databases.copy(url)
        async with databases.store(copy) as store:
            await execute(store, *statements, **kept.end)
            rows.append(await caught(name, "verifier", store, kept, by_verifier))
        await databases.drop(copy)
    copy = await databases.copy(url)
    async with databases.store(copy) as store:
        await _rewrite(store, kept)
        assert await by_verifier(store, kept) == "", "it is consistent in itself"
        rows.append(
            await caught("rewritten, all hashes valid", "kept checkpoint", store, kept, by_checkpoint)
        )
        rows.append(await caught("two stories for two readers", "witness", store, kept, by_witness))
    await databases.drop(copy)
    async with databases.store(kept.older) as store:
        assert await by_verifier(store, kept) == "", "it was so once"
        rows.append(await caught("an old database put back", "kept checkpoint", store, kept, by_checkpoint))
    copy = await databases.copy(url)
    async with databases.store(copy) as store:
        root = kept.checkpoint.note.text.split("\n")[2]
        async with store.read() as tx:
            newest = await tx.checkpoints.newest()
        assert newest is not None
        note = newest.tree.note.replace(newest.tree.note.split("\n")[2], _FORGED_ROOT)
        assert root not in note
        await execute(store, "UPDATE audit_checkpoint SET note = :note", note=note)
        rows.append(await caught("a forged checkpoint", "log's signature", store, kept, by_checkpoint))
    return rows


async def untouched(databases: Databases, url: str, kept: Kept) -> Sequence[str]:
    """What is said of the log itself: that nothing is wrong, and how large a receipt is."""
    async with databases.store(url) as store:
        began = perf_counter()
        for check in (by_verifier, by_checkpoint, by_witness):
            assert await check(store, kept) == ""
        seconds = perf_counter() - began
        async with store.read() as tx:
            proven = await receipt(tx, TENANT, SHARD, kept.records // 3)
        assert proven is not None
        size = len(json.dumps(receipt_view(proven).model_dump()))
    return (f"untouched: nothing is found, {seconds:.1f} s", f"a receipt has {size:,} bytes")


async def run(records: int, *, on_postgresql: bool) -> list[Caught]:
    """The table, of a log of as many records."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergrant-bench-")))
        empty = await stack.enter_async_context(postgresql()) if on_postgresql else None
        key_file = folder / "keys.json"
        KeyRing.create(key_file)
        databases = Databases(key_file, folder, empty)
        url, kept = await written(databases, records)
        for line in await untouched(databases, url, kept):
            print(line)
        rows = await ten_copies(databases, url, kept)
        kept.witness.close()
    print(f"| copy of {records:,} records | named by | where | s |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row.copy} | {row.by} | {row.place} | {row.seconds:.2f} |")
    return rows
