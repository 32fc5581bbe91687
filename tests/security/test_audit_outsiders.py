"""Who doesn't trust the database finds what was done to the log: the guide's own commands, run offline."""

import asyncio
import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import delete, update

from activities.anchors import WitnessAnchor
from activities.audit_log import AuditLogKeeper
from evergrant_server import audit
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.audit.checkpoints.notes import WitnessKey
from evergrant_server.core.access import Action
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.store.database.columns import METADATA
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guide/audit.md").read_text(encoding="utf-8")
BLOCKS = re.compile(r"^```sh (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(kind: str) -> list[str]:
    """The guide's lines of blocks that are marked so."""
    return [line for mark, block in BLOCKS.findall(GUIDE) if mark == kind for line in block.splitlines()]


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Outsider:
    """A person with the client, a folder, an auditor's key, and nothing of the server's."""

    def __init__(self, folder: Path, url: str, key: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        python = f"{ROOT / 'clients/python/src'}"
        self.env = {"EVERGRANT_URL": url, "EVERGRANT_API_KEY": key, "PYTHONPATH": python, "HOME": str(folder)}
        self.env |= {"PATH": os.environ["PATH"]}

    def program(self, line: str) -> str:
        """What a shell runs for a line of the guide."""
        assert line.startswith("evergrant ")
        call = f'{sys.executable} -c "from evergrant.cli import main; main()"'
        return line.replace("evergrant", call, 1)

    async def run(self, line: str, **env: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", self.program(line), cwd=self.folder, env=self.env | env,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return Ended(process.returncode or 0, out.decode(), err.decode())

    async def done(self, line: str, **env: str) -> str:
        ended = await self.run(line, **env)
        assert ended.status == 0, (line, ended)
        return ended.out


class Installation(NamedTuple):
    api: Api
    heads: HeadsLog
    url: str
    auditor: str
    folder: Path

    async def record(self, count: int = 1) -> str:
        """The place of the last of new records, after the next checkpoint."""
        entry = AuditEntry(
            tenant=TENANT,
            at=self.api.clock.now(),
            action=AuditAction.GRANT_REFRESHED,
            object="con_1",
            context=RequestContext(by="schedule"),
            detail={},
        )
        async with self.api.worker.write() as tx:
            for _ in range(count):
                record = await audit.append(tx, entry)
        await self.heads.advance()
        return f"{record.shard}/{record.seq}"

    def outsider(self, name: str = "outsider") -> Outsider:
        return Outsider(self.folder / name, self.url, self.auditor)


@asynccontextmanager
async def an_installation(folder: Path) -> AsyncIterator[Installation]:
    async with running_api(folder) as api, served(api.app) as url:
        heads = HeadsLog(api.worker, api.clock, "evergrant.example/audit")
        auditor = await api.app_for("auditor", Action.AUDIT)
        yield Installation(api, heads, url, auditor, folder)


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    async with an_installation(tmp_path) as made:
        yield made


KEPT = "evergrant audit checkpoint --kept log.checkpoint --log log.pub"


async def test_the_guides_commands_for_an_outsider(installation: Installation):
    place = await installation.record(3)
    outsider = installation.outsider()
    for line in commands("outsider"):
        await outsider.done(line, RECORD=place)
    assert KEPT in commands("outsider")
    offline = {"EVERGRANT_URL": "http://127.0.0.1:9"}
    verified = await outsider.done(
        f"evergrant audit verify receipt.json --log log.pub --record {place} -o json", **offline
    )
    assert json.loads(verified)["ok"] is True
    before = (outsider.folder / "log.checkpoint").read_text()
    await installation.record(2)
    await outsider.done(KEPT)
    assert (outsider.folder / "log.checkpoint").read_text() != before


async def test_a_receipt_that_isnt_of_the_record_is_refused_by_its_kind(installation: Installation):
    place = await installation.record(3)
    outsider = installation.outsider()
    await outsider.done("evergrant audit key > log.pub")
    await outsider.done(f"evergrant audit receipt {place} --out receipt.json")
    receipt = json.loads((outsider.folder / "receipt.json").read_text())
    shard, _, index = place.partition("/")
    ended = await outsider.run(
        f"evergrant audit verify receipt.json --log log.pub --record {shard}/{int(index) - 1}"
    )
    assert ended.status == 1
    assert f"record {place}: record: it is of the record {place}" in ended.err
    forged = receipt | {"body": receipt["body"].replace("con_1", "con_2")}
    (outsider.folder / "receipt.json").write_text(json.dumps(forged))
    ended = await outsider.run("evergrant audit verify receipt.json --log log.pub")
    assert ended.status == 1
    assert f"record {place}: body: it isn't what was recorded" in ended.err
    another = "another.example/audit+" + (outsider.folder / "log.pub").read_text().partition("+")[2].strip()
    ended = await outsider.run(f"evergrant audit verify receipt.json --log {another}")
    assert ended.status == 1


async def test_an_export_and_a_receipt_in_cose_are_checked_offline(installation: Installation):
    place = await installation.record(3)
    outsider, offline = installation.outsider(), {"EVERGRANT_URL": "http://127.0.0.1:9"}
    await outsider.done("evergrant audit key > log.pub")
    await outsider.done("evergrant audit export log.jsonl")
    verify = "evergrant audit verify log.jsonl --log log.pub -o json"
    verified = json.loads(await outsider.done(verify, **offline))
    assert (verified["ok"], verified["whole"], verified["tenant"]) == (True, True, TENANT)
    assert verified["records"] >= verified["proven"] >= 3
    export = outsider.folder / "log.jsonl"
    export.write_text(export.read_text().replace("con_1", "con_2", 1))
    ended = await outsider.run(verify, **offline)
    assert ended.status == 1
    assert "export_body" in ended.err
    await outsider.done(f"evergrant audit receipt {place} --cose --out receipt.cose")
    verify = f"evergrant audit verify receipt.cose --log log.pub --record {place}"
    await outsider.done(verify, **offline)
    raw = outsider.folder / "receipt.cose"
    raw.write_bytes(raw.read_bytes().replace(b"con_1", b"con_2", 1))
    ended = await outsider.run(verify, **offline)
    assert ended.status == 1
    assert f"record {place}: body: it isn't what was recorded" in " ".join(ended.err.split())


async def rewritten(made: Installation) -> None:
    """Write the whole log anew with every key of the installation: another record, all hashes valid."""
    async with made.api.worker.write() as tx:
        for table in ("audit", "audit_tree", "audit_node", "audit_head", "audit_checkpoint"):
            await tx.connection.execute(delete(METADATA.tables[table]))
    await made.record(7)


async def test_a_log_that_was_rewritten_is_caught_by_a_kept_checkpoint(installation: Installation):
    await installation.record(3)
    outsider = installation.outsider()
    await outsider.done("evergrant audit key > log.pub")
    await outsider.done(KEPT)
    kept = (outsider.folder / "log.checkpoint").read_text()
    await rewritten(installation)
    for _ in range(4):
        await installation.record()
    verdict = await audit.verify_log(installation.api.worker, TENANT)
    assert verdict.ok, "the database is consistent in itself"
    ended = await outsider.run(KEPT)
    assert ended.status == 1
    assert "doesn't extend log.checkpoint" in ended.err
    assert (outsider.folder / "log.checkpoint").read_text() == kept, "it stays, as the evidence"


async def test_an_older_database_is_caught_by_a_kept_checkpoint(installation: Installation):
    await installation.record(3)
    older = installation.folder / "older.db"
    file = installation.folder / "evergrant.db"
    with closing(sqlite3.connect(file)) as live, closing(sqlite3.connect(older)) as copy:
        live.backup(copy)
    for _ in range(3):
        await installation.record()
    outsider = installation.outsider()
    await outsider.done("evergrant audit key > log.pub")
    await outsider.done(KEPT)
    with closing(sqlite3.connect(older)) as copy, closing(sqlite3.connect(file)) as live:
        copy.backup(live)
    ended = await outsider.run(KEPT)
    assert ended.status == 1
    assert "an older copy was put back" in " ".join(ended.err.split())


async def test_a_forged_checkpoint_is_refused(installation: Installation):
    await installation.record(3)
    outsider = installation.outsider()
    await outsider.done("evergrant audit key > log.pub")
    note = METADATA.tables["audit_checkpoint"].c.note
    async with installation.api.worker.write() as tx:
        stored = (await tx.checkpoints.newest()).tree.note  # type: ignore[union-attr]  # there is one
        forged = stored.replace(f"\n{stored.split(chr(10))[2]}\n", f"\n{'A' * 43}=\n")
        await tx.connection.execute(update(METADATA.tables["audit_checkpoint"]).values({note: forged}))
    ended = await outsider.run(KEPT)
    assert ended.status == 1
    assert "is wrong" in ended.err


@asynccontextmanager
async def a_witness(outsider: Outsider, port: int) -> AsyncIterator[tuple[str, WitnessAnchor]]:
    """The guide's witness on a machine of its own: its public key, and how a worker asks it."""
    (line,) = commands("witness")
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", outsider.program(line), cwd=outsider.folder, env=outsider.env | {"PORT": str(port)},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            key = (await process.stdout.readline()).decode().removeprefix("witness ").strip()
            await process.stdout.readline()
        egress = Egress(EgressPolicy(allow=(f"127.0.0.1:{port}",)))
        url = f"http://127.0.0.1:{port}"
        yield key, WitnessAnchor(egress, WitnessKey.parse(key), url, timedelta(0))
    finally:
        process.terminate()
        await process.wait()


async def anchored(made: Installation, anchor: WitnessAnchor) -> str | None:
    """Have the witness sign the newest checkpoint, as a worker does; returns why it didn't."""
    keeper = AuditLogKeeper(made.api.worker, made.api.clock, made.heads, [anchor], timedelta(minutes=15))
    await keeper.anchor_due()
    await asyncio.gather(*keeper._turns.values())
    async with made.api.worker.read() as tx:
        return (await tx.checkpoints.anchors())[anchor.name].problem


async def test_two_stories_are_caught_by_the_guides_witness(installation: Installation, tmp_path: Path):
    place = await installation.record(3)
    outsider, security = installation.outsider(), installation.outsider("security")
    await outsider.done("evergrant audit key > log.pub")
    shutil.copy(outsider.folder / "log.pub", security.folder)
    async with a_witness(security, free_port()) as (key, anchor):
        (outsider.folder / "witness.pub").write_text(f"{key}\n")
        first, then = commands("outsider-with-witness")
        await outsider.done(first, RECORD=place)
        ended = await outsider.run(then)
        assert ended.status == 1, "no witness has signed yet"
        assert "0 of 1 have signed" in ended.err
        assert await anchored(installation, anchor) is None
        for line in (first, then):
            await outsider.done(line, RECORD=place)
        await rewritten(installation)  # the story for somebody else
        for _ in range(9):
            await installation.record()
        assert "another root" in str(await anchored(installation, anchor))
    async with installation.api.worker.read() as tx:
        records = await audit.page(tx, INSTALLATION, limit=200)
    assert [record.object for record in records if record.action is AuditAction.ANCHOR_REFUSED] == [
        anchor.name
    ]
