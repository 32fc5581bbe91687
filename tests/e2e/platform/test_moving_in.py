"""The commands of docs/guide/moving-in.md, on the recorded shapes of Nango and Auth0 and on a table."""

import asyncio
import json
import re
import shlex
from pathlib import Path

import pytest
from evergrant.cli import main

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.secret import Secret
from evergrant_server.crypto.keyring import Role
from evergrant_server.wiring.platform import open_platform
from tests.fakes.databases import sqlite_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import admin_key, prepared, running_worker
from tests.fakes.platform.observations import TENANT
from tests.fakes.platform.serving import serving
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import an_integration, discovered

ROOT = Path(__file__).parents[3]
SHAPES = ROOT / "tests/unit/client/transfer/shapes"
SECTION = re.compile(r"^## (From .*?|Importing)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
TABLE = "provider,user_id,access_token,refresh_token,expires_at,scope\nhubspot,7,canary-7,canary-r7,,read\n"


def commands() -> list[list[str]]:
    """The import commands of the guide, in its order."""
    text = (ROOT / "docs/guide/moving-in.md").read_text(encoding="utf-8")
    lines = [line for _, section in SECTION.findall(text) for line in section.splitlines()]
    return [shlex.split(it, comments=True) for it in lines if it.startswith("evergrant import ")]


def write_files(folder: Path) -> None:
    """What the guide's other commands would have written, without the rows that are refused."""
    nango, auth0 = (json.loads((SHAPES / f"{name}.json").read_text()) for name in ("nango", "auth0"))
    rows = {"connections": nango["table"][:5], "users": auth0["page"]["users"][:-1]}
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(it) + "\n" for it in found))
    (folder / "nango.key").write_text(nango["encryption_key"])
    (folder / "tokens.csv").write_text(TABLE)
    grant = {"integration": "crm", "subject": "zoe", "access_token": "canary-8", "scopes": ["read"]}
    (folder / "grants.jsonl").write_text(json.dumps(grant | {"expires_in": 3600}) + "\n")


async def run(*words: str) -> int:
    """Run the command; returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main, words)
    return int(ended.value.code or 0)


async def test_the_guides_commands_import_what_they_say(
    temporal_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = await prepared(temporal_address, sqlite_url(tmp_path), tmp_path, ())
    async with (
        ScriptedProvider() as idp,
        open_platform(settings, Role.OPERATOR) as parts,
        running_worker(settings),
        serving(settings) as url,
    ):
        async with parts.store.write() as tx:
            for name in ("crm", "google"):
                row = an_integration(TENANT, parts.clock.now(), **{**discovered(idp), "name": name})
                await tx.integrations.put(row, Secret(idp.client_secret), expected=None)
        monkeypatch.setenv("EVERGRANT_URL", url)
        monkeypatch.setenv("EVERGRANT_API_KEY", await admin_key(parts))
        made = 0
        for command in commands():
            status, (out, err) = await run(*command[1:]), capfd.readouterr()
            assert status == 0, (command, err)
            assert "canary" not in out + err
            async with parts.store.read() as tx:
                found = list(await tx.connections.page(TENANT))
            imports = "--no-verify" in command or command[-1] == "grants.jsonl"
            assert (len(found) > made) == imports, command
            made = len(found)
        async with asyncio.timeout(PATIENCE_S):
            while {it.state for it in found} != {LifecycleState.ACTIVE}:
                await asyncio.sleep(0.1)
                async with parts.store.read() as tx:
                    found = list(await tx.connections.page(TENANT))
    subjects = {"crm": {"alice", "bob", "7", "zoe"}, "google": {"google-oauth2|1001"}}
    assert {(it.integration, it.subject) for it in found} == {
        (name, subject) for name, known in subjects.items() for subject in known
    }
