"""The folder of examples/configuration, applied twice to a whole installation: the second changes nothing."""

import asyncio
import re
from pathlib import Path

import pytest
from evergrant.cli import main

from evergrant_server import audit
from evergrant_server.crypto.keyring import Role
from evergrant_server.wiring.platform import Platform, open_platform
from tests.fakes.databases import sqlite_url
from tests.fakes.platform.installation import admin_key, prepared, running_worker
from tests.fakes.platform.observations import TENANT
from tests.fakes.platform.serving import serving

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/configuration"
VARIABLES = ("GITHUB_CLIENT_SECRET", "ON_CALL_WEBHOOK", "SIEM_AUTHORIZATION")


async def records(parts: Platform) -> int:
    async with parts.store.read() as tx:
        return len(await audit.page(tx, TENANT, limit=500))


async def test_the_example_is_applied_twice_and_the_second_time_changes_nothing(
    temporal_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    folder = tmp_path / "configuration"
    (folder / "secrets").mkdir(parents=True)
    for file in EXAMPLE.glob("*.yaml"):
        (folder / file.name).write_text(file.read_text())
    (folder / "secrets/gitlab").write_text("canary-gitlab\n")
    used = set(re.findall(r"env: (\w+)", "".join(file.read_text() for file in EXAMPLE.glob("*.yaml"))))
    assert used == set(VARIABLES)
    for name in VARIABLES:
        monkeypatch.setenv(name, f"https://hooks.example.com/in?key=canary-{name}")

    async def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            await asyncio.to_thread(main, [*words, "-f", str(folder)])
        out, err = capfd.readouterr()
        assert "canary" not in out + err
        return int(ended.value.code or 0), out, err

    settings = await prepared(temporal_address, sqlite_url(tmp_path), tmp_path, ())
    async with (
        open_platform(settings, Role.OPERATOR) as parts,
        running_worker(settings),
        serving(settings) as url,
    ):
        monkeypatch.setenv("EVERGRANT_URL", url)
        monkeypatch.setenv("EVERGRANT_API_KEY", await admin_key(parts))
        status, out, err = await run("apply")
        assert (status, err) == (0, "")
        assert out.endswith("13 created, 0 changed, 0 pruned, 0 unchanged\n"), out
        before = await records(parts)
        for command in (("plan",), ("plan", "--prune"), ("apply", "--prune")):
            status, out, err = await run(*command)
            assert (status, err) == (0, "")
            assert out.endswith(
                "0 pruned, 13 unchanged\n" if command[0] == "apply" else "0 to prune, 13 unchanged\n"
            )
        assert await records(parts) == before
        for file in folder.glob("*.yaml"):
            if file.name not in ("owner.yaml", "receivers.yaml"):
                file.unlink()
        status, out, err = await run("apply", "--prune")
        assert (status, err) == (0, "")
        assert out.endswith("7 pruned, 2 unchanged\n"), out  # permits and credentials go with their apps
