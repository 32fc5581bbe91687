"""`tenants list`, `disable` and `enable`, as an operator types them."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from evergrant_server.cli import tenants
from evergrant_server.cli.flags import Flags
from evergrant_server.cli.keys import is_valid_key
from evergrant_server.core.access import MovePhase
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Store
from tests.fakes.databases import migrated_sqlite, sqlite_url
from tests.fakes.failures import fails
from tests.fakes.rows import put_app


async def test_tenants_are_listed_as_they_are_served_and_a_broken_row_as_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    await migrated_sqlite(tmp_path)
    ring = KeyRing.create(tmp_path / "keys.json")
    flags = Flags(data_dir=tmp_path, database_url=sqlite_url(tmp_path), key_file=tmp_path / "keys.json")
    store = await Store.open(sqlite_url(tmp_path), ring, SystemClock())
    async with store.write() as tx:
        for name in ("beta", "gamma"):
            await tx.tenants.begin(Tenant(name))
        key = await put_app(tx, Tenant("acme"), "sync", SystemClock().now())
    for _ in range(2):
        await tenants.disable("acme", reason="INC-9", flags=flags)
    await tenants.disable("beta", reason="INC-9", flags=flags)
    await tenants.enable("beta", reason="over", flags=flags)
    async with store.write() as tx:
        await tx.connection.execute(
            text("UPDATE tenant_standing SET disabled = NOT disabled WHERE id = 'gamma'")
        )
    await store.close()
    assert await is_valid_key(flags.settings(), key), "`dev` would make another at each start"
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "acme is now disabled",
        "acme was already disabled",
        "beta is now disabled",
        "beta is now enabled",
    ]
    await tenants.list_tenants(flags=flags)
    listed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(name, word) for name, word, *_ in listed] == [
        ("acme", "disabled"),
        ("beta", "enabled"),
        ("gamma", "broken"),
    ]
    assert [it[-1] for it in listed[:2]] == ["INC-9", "over"]


async def test_a_tenant_is_erased_once_its_name_is_repeated_and_no_hold_forbids_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    await migrated_sqlite(tmp_path)
    ring = KeyRing.create(tmp_path / "keys.json")
    flags = Flags(data_dir=tmp_path, database_url=sqlite_url(tmp_path), key_file=tmp_path / "keys.json")
    store = await Store.open(sqlite_url(tmp_path), ring, SystemClock())
    async with store.write() as tx:
        await put_app(tx, Tenant("acme"), "sync", SystemClock().now())
    with fails(ErrorCode.INVALID_REQUEST, "--confirm acme"):
        await tenants.erase("acme", reason="INC-9", confirm="acne", flags=flags)
    with fails(ErrorCode.NOT_FOUND, "tenants list"):
        await tenants.erase("acne", reason="INC-9", confirm="acne", flags=flags)
    await tenants.hold("acme", reason="CASE-7", flags=flags)
    hold_id = capsys.readouterr().out.partition("\t")[0]
    with fails(ErrorCode.UNDER_LEGAL_HOLD, hold_id):
        await tenants.erase("acme", reason="INC-9", confirm="acme", flags=flags)
    async with store.read() as tx:
        assert await tx.tenants.is_enabled(Tenant("acme")), "nothing was begun"
    with fails(ErrorCode.NOT_FOUND, "holds ls"):
        await tenants.release("acme", "hld_0", reason="over", flags=flags)
    await tenants.release("acme", hold_id, reason="over", flags=flags)
    await tenants.erase("acme", reason="INC-9", confirm="acme", flags=flags)
    await tenants.erasures("acme", flags=flags)
    async with store.read() as tx:
        assert not await tx.tenants.is_enabled(Tenant("acme"))
    await store.close()
    ordered, listed = capsys.readouterr().out.splitlines()[-2:]
    assert ordered == listed
    assert listed.split("\t")[1:4] == ["tenant", "acme", "revoking"]


async def test_a_tenant_that_a_move_pauses_meanwhile_isnt_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await migrated_sqlite(tmp_path)
    ring = KeyRing.create(tmp_path / "keys.json")
    flags = Flags(data_dir=tmp_path, database_url=sqlite_url(tmp_path), key_file=tmp_path / "keys.json")
    store = await Store.open(sqlite_url(tmp_path), ring, SystemClock())
    async with store.write() as tx:
        await put_app(tx, Tenant("acme"), "sync", SystemClock().now())
    erase_target = tenants.erase_target

    async def paused_before(*order: Any) -> Any:
        async with store.write() as tx:
            standing = await tx.tenants.standing(Tenant("acme"))
            paused = standing.__replace__(phase=MovePhase.PAUSED)
            await tx.tenants.put(paused, expected=standing.revision)
        return await erase_target(*order)

    monkeypatch.setattr(tenants, "erase_target", paused_before)
    with fails(ErrorCode.INVALID_REQUEST, "acme is paused"):
        await tenants.erase("acme", reason="INC-9", confirm="acme", flags=flags)
    async with store.read() as tx:
        assert await tx.erasures.page(Tenant("acme"), None, 5) == []
    await store.close()
