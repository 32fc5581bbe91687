"""A database password from a file stays in it: no process of the platform has it in its environment."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from evergrant_server.cli.dev.messages import READY
from examples.demo.processes import ROOT
from tests.fakes.databases import lent
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.descendants import descendants
from tests.fakes.ports import free_port

PASSWORD = "canary-of-the-database"


@pytest.mark.soak
async def test_no_process_of_dev_has_the_password_in_its_environment(tmp_path: Path):
    """`dev` starts the API and a worker, and the API starts two workers of granian."""
    (tmp_path / "password").write_text(PASSWORD + "\n")
    async with lent("postgresql", tmp_path) as url, dev(tmp_path, url) as pid:
        environments = {pid: environment_of(pid) for pid in descendants(pid)}
    evergrant = [it for it in environments.values() if "EVERGRANT_DATABASE_URL=" in it]
    assert len(evergrant) >= 4
    assert [pid for pid, environment in environments.items() if PASSWORD in environment] == []


@asynccontextmanager
async def dev(folder: Path, url: str) -> AsyncIterator[int]:
    """A ready `dev` with two API workers, on this database."""
    settings = {
        "DATABASE_URL": url.replace("postgresql+asyncpg", "postgresql"),
        "DATABASE_PASSWORD_FILE": str(folder / "password"),
        "API_WORKERS": "2",
        **{name: str(free_port()) for name in ("PORT", "GATEWAY_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT")},
    }
    environment = {**os.environ, **{f"EVERGRANT_{name}": value for name, value in settings.items()}}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "evergrant_server", "dev", "--data-dir", str(folder),
        cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        said = b""
        async with asyncio.timeout(PATIENCE_S):
            while line := await child.stdout.readline():
                said += line
                if line.startswith(READY.encode()):
                    break
        assert line, f"dev ended before it was ready: {said.decode()}"
        yield child.pid
    finally:
        child.send_signal(signal.SIGINT)
        await asyncio.wait_for(child.communicate(), PATIENCE_S)


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text(errors="replace")
