"""What a killed `dev` leaves behind: its own processes are ended at the next start, and no others."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from evergrant_server.cli.dev.leftovers import end_leftovers, only_dev_of, recorded_processes, running_dev
from evergrant_server.cli.process import ChildProcess, CommandFailed, started_at
from evergrant_server.settings import BadSettings
from examples.demo.processes import ROOT
from tests.fakes.patience import PATIENCE_S, eventually

SLEEPS = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[ChildProcess]:
    child = ChildProcess("worker", SLEEPS, tmp_path)
    await child.start()
    yield child
    await child.stop()


def pid_of(process: ChildProcess) -> int:
    return int(process.pid_file.read_text().split()[0])


async def test_a_process_that_a_pid_file_names_is_ended(process: ChildProcess, tmp_path: Path):
    said: list[str] = []
    assert [(it.name, it.pid) for it in recorded_processes(tmp_path)] == [("worker", pid_of(process))]
    await end_leftovers(tmp_path, said.append)
    assert await process.wait() == -signal.SIGTERM
    assert said == [f"ending worker, process {pid_of(process)}, which an earlier start left behind"]
    assert recorded_processes(tmp_path) == []


@pytest.mark.parametrize("content", ["{pid} 17", "{pid}", "", "{pid} soon"])
async def test_another_process_with_that_pid_is_left_alone(
    process: ChildProcess, tmp_path: Path, content: str
):
    pid = pid_of(process)
    process.pid_file.write_text(content.format(pid=pid))
    await end_leftovers(tmp_path, print)
    assert started_at(pid) is not None
    assert not process.has_exited


def test_one_dev_at_a_time_has_the_data_folder(tmp_path: Path):
    assert running_dev(tmp_path) is None
    with only_dev_of(tmp_path):
        assert running_dev(tmp_path)
        with pytest.raises(BadSettings, match=r"EVERGRANT_DATA_DIR: Evergrant runs with .* already"):
            only_dev_of(tmp_path).__enter__()
    assert running_dev(tmp_path) is None


async def test_a_command_that_fails_says_why_in_its_own_words(tmp_path: Path):
    says = "import sys; sys.exit('evergrant: key_unavailable: no such file\\n  Restore it.')"
    child = ChildProcess("api", [sys.executable, "-c", says], tmp_path)
    await child.start()
    await asyncio.wait_for(child.wait(), 60)
    with pytest.raises(CommandFailed, match=r"^key_unavailable: no such file\n  Restore it") as failed:
        child.raise_if_exited()
    assert failed.value.status == 1


_STARTS_A_CHILD = """
import asyncio, sys
from pathlib import Path
from evergrant_server.cli.process import ChildProcess
from examples.demo.processes import Process

async def main():
    says = "import json, os, time; print(json.dumps({'pid': os.getpid()}), flush=True); time.sleep(600)"
    if sys.argv[1] == "dev":
        await ChildProcess("worker", [sys.executable, "-c", says], Path(sys.argv[2])).start()
    else:
        process = await Process.start("server", ["-c", says])
        Path(sys.argv[2], "worker.pid").write_text(f"{process.pid}")
    print("started", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("starter", ["dev", "demo"])
async def test_a_child_ends_with_its_parent_that_is_killed(tmp_path: Path, starter: str):
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _STARTS_A_CHILD, starter, str(tmp_path),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    assert await asyncio.wait_for(parent.stdout.readline(), PATIENCE_S) == b"started\n"
    child = int((tmp_path / "worker.pid").read_text().split()[0])
    assert started_at(child) is not None
    parent.kill()
    await parent.wait()

    async def has_ended() -> bool:
        return started_at(child) is None

    await eventually(has_ended)
