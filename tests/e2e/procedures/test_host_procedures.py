"""docs/guide/operations.md without compose: hosts with a key file each, and `dev` with SQLite."""

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor import keys as doctor
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import ROOT_PURPOSES, KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store import Store
from evergrant_server.store.keys import NO_CONNECTION
from examples.demo.evergrant_api import EvergrantApi
from tests.e2e.world import refused
from tests.fakes.databases import database_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.docker import blocks
from tests.fakes.platform.warm import warm_output, warm_python
from tests.fakes.platform.warm_dev import start_dev

__all__ = ["database_url"]

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/guide/operations.md"
COPIES = {Role.API: "api-keys.json", Role.GATEWAY: "gateway-keys.json"}


async def shell(block: str, folder: Path, **env: str) -> None:
    """Run lines of the page in this folder."""
    path = f"{warm_python()}:{Path(sys.executable).parent}:/usr/bin:/bin"
    child = await asyncio.create_subprocess_exec(
        "sh", "-euc", block, cwd=folder, env={"PATH": path, "PYTHONPATH": str(ROOT), **env},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert child.returncode == 0, output.decode()


async def add_tenant(settings: Settings, tenant: str) -> None:
    """A worker makes a new tenant's keys, under the roots that are current in its file."""
    ring = KeyRing.open(settings.key_path, Role.WORKER)
    store = await Store.open(settings.database_url, ring, SystemClock())
    async with store.write() as tx:
        await tx.sealer.get_or_create_keys(Tenant(tenant), NO_CONNECTION, ROOT_PURPOSES)
    await store.close()


async def test_after_a_rotation_each_host_is_told_that_its_copy_is_old_until_it_has_the_new_one(
    database_url: str, tmp_path: Path
):
    settings = load_settings(database_url=database_url, key_file=tmp_path / "keys.json", data_dir=tmp_path)
    full = KeyRing.create(settings.key_path)
    hosts = {role: tmp_path / f"{role}-host.json" for role in COPIES}
    for role, path in hosts.items():
        full.export(path, role)
    (rotation,) = blocks(PAGE, "### Rotating the key file", "hosts")
    await shell(rotation, tmp_path, EVERGRANT_KEY_FILE="keys.json")
    await add_tenant(settings, "acme")
    before = doctor.ROLE.set(None)
    for role, path in hosts.items():
        doctor.ROLE.set(role)
        settings.key_file = path
        with pytest.raises(CheckFailed, match=r"lacks the root root_.* of the purpose lease") as problem:
            await doctor.keys_open(settings)
        assert f"keys export-{role}" in problem.value.repair
        path.write_bytes((tmp_path / COPIES[role]).read_bytes())
        assert "lease (seals with root_" in await doctor.keys_open(settings)
    doctor.ROLE.reset(before)


@pytest.mark.soak
async def test_dev_comes_back_with_a_backup_that_is_older_than_its_key_file(tmp_path: Path):
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    data = tmp_path / ".evergrant"
    backup, restore = re.findall(
        r"^ *```sh\n(.*?)^ *```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    dev = await start_dev(data, "127.0.0.1:9")
    try:
        async with EvergrantApi(dev.api, dev.admin_key) as admin:
            await admin.put("/v1/apps/kept", {})
            await shell(backup, tmp_path)
            await admin.put("/v1/apps/late", {})
            await warm_output(["keys", "rotate", "lease", "--data-dir", str(data)], {})
    finally:
        await dev.stop()
    await shell(restore, tmp_path)
    dev = await start_dev(data, "127.0.0.1:9")
    try:
        async with EvergrantApi(dev.api, dev.admin_key) as admin:
            assert (await admin.get("/v1/apps/kept"))["name"] == "kept"
            with refused("not_found"):
                await admin.get("/v1/apps/late")
        findings = json.loads(await warm_output(["doctor", "-o", "json", "--data-dir", str(data)], {}))
        assert [finding for finding in findings if not finding["ok"]] == []
    finally:
        await dev.stop()
