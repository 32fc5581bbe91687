"""`region attach`, `status` and `detach`, and what they refuse."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.cli import doctor as doctor_package
from evergrant_server.cli import region as commands
from evergrant_server.cli.doctor import database as doctor
from evergrant_server.cli.flags import Flags
from evergrant_server.cli.tenants import durability
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import BadSettings, load_settings
from evergrant_server.store import Store
from evergrant_server.store.database import schema
from tests.fakes.failures import fails
from tests.fakes.postgresql.replicated import PostgresServer, caught_up, replicated


async def _status(flags: Flags, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    with suppress(SystemExit):
        await commands.status(output="json", flags=flags)
    return json.loads(capsys.readouterr().out)


async def _prepared(folder: Path, server: PostgresServer) -> None:
    KeyRing.create(folder / "keys.json")
    await schema.upgrade(server.url())
    store = await Store.open(server.url(), KeyRing.open(folder / "keys.json", Role.WORKER), SystemClock())
    async with store.write() as tx:
        await tx.tenants.begin(Tenant("default"))
    await store.close()


def _approvers(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    for name in ("alice", "bob"):
        commands.approver(name, out=folder / name)
    return capsys.readouterr().out.split()


async def test_a_region_is_attached_looked_at_and_detached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(BadSettings, match="needs PostgreSQL"):
        load_settings(data_dir=tmp_path, region="a")
    monkeypatch.setenv("EVERGRANT_REGION_WAIT", "1s")
    async with replicated(synchronous=True) as (first, second):
        await _prepared(tmp_path, first)
        here, there = (Flags(data_dir=tmp_path, database_url=server.url()) for server in (first, second))
        monkeypatch.setenv("EVERGRANT_REGION", "a")
        assert "region attach" in (await _status(here, capsys))["problems"][0]["repair"]
        with fails(ErrorCode.INVALID_REQUEST, "shut the other region's database down"):
            await commands.detach(flags=here)
        second.pause()
        with fails(ErrorCode.REGION_AWAY, "no confirmation within 1 s"):
            await commands.attach(flags=here)
        second.resume()
        for _ in range(2):
            await commands.attach(flags=here)
        seen = await _status(here, capsys)
        assert (seen["serves"], seen["connections_at_stake"], seen["problems"]) == ("a", 0, [])
        assert [(each["name"], each["sync_state"]) for each in seen["standbys"]] == [("b", "sync")]
        settings = here.settings()
        assert "b has everything" in await doctor.region(settings)
        await durability("default", "region", flags=here)
        await caught_up(first, second)
        monkeypatch.setenv("EVERGRANT_REGION", "b")
        seen = await _status(there, capsys)
        assert (seen["serves"], seen["is_standby"], seen["problems"]) == ("a", True, [])
        assert "a serves" in await doctor.region(there.settings())
        with fails(ErrorCode.REGION_FENCED, "b doesn't serve"):
            await commands.attach(flags=there)
        with fails(ErrorCode.INVALID_REQUEST, "has no bound"):
            await commands.promote(flags=there)
        monkeypatch.setenv("EVERGRANT_REGION_APPROVERS", ",".join(_approvers(tmp_path, capsys)))
        with fails(
            ErrorCode.APPROVAL_REQUIRED, "2 of alice, bob must approve: promote b, in place of a"
        ) as asked:
            await commands.promote(flags=there)
        ordered = asked.value.detail.partition("approve: ")[2]
        capsys.readouterr()
        for name in ("alice", "bob"):
            commands.approve(name, ordered, key=tmp_path / name)
        approvals = tuple(capsys.readouterr().out.split())
        with fails(ErrorCode.INVALID_REQUEST, "has no bound"):
            await commands.promote(approval=approvals, flags=there)
        monkeypatch.setenv("EVERGRANT_REGION", "a")
        second.kill()
        seen = await _status(here, capsys)
        assert "doesn't confirm" in seen["problems"][0]["problem"]
        await commands.detach(other_region_stays_down=True, flags=here)
        with pytest.raises(doctor_package.CheckFailed, match="serves alone"):
            await doctor.region(settings)
