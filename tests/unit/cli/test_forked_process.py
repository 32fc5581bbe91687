"""The API and the worker of `dev` begin in forks of it: processes of their own, with none of its files."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from evergrant_server.cli.dev.forked_process import can_fork
from examples.demo.processes import ROOT
from tests.fakes.patience import PATIENCE_S

# `dev` with a command that says what it found
_DEV = """
import asyncio, json, os, signal, sys
from pathlib import Path
from evergrant_server.cli.dev import forked_process
from evergrant_server.cli.dev.leftovers import only_dev_of

def command(arguments):
    asyncio.run(asyncio.sleep(0))
    print(json.dumps({
        "arguments": arguments,
        "variable": os.environ["EVERGRANT_PORT"],
        "open": sorted(map(int, os.listdir("/proc/self/fd"))),
        "leads its session": os.getsid(0) == os.getpid(),
        "handlers": [signal.getsignal(it) == signal.SIG_DFL for it in (signal.SIGTERM, signal.SIGCHLD)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    }), flush=True)
    os._exit(3)

async def main(folder):
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, print)
    with only_dev_of(folder):
        child = forked_process.ForkedProcess("worker", "--version", folder, {"EVERGRANT_PORT": "1"}, command)
        for _ in range(2):
            await child.start()
            print(await child.wait(), child.has_exited, flush=True)

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.skipif(not can_fork(), reason="there `dev` runs the commands")
async def test_it_is_a_process_of_its_own_and_a_later_start_runs_the_command(tmp_path: Path):
    dev = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DEV, str(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(dev.communicate(), PATIENCE_S)
    assert said.split() == [b"3", b"True", b"0", b"True"]
    of_fork, of_command = (tmp_path / "worker.log").read_text().splitlines()
    assert json.loads(of_fork) == {
        "arguments": ["--version"],
        "variable": "1",
        "open": [0, 1, 2, 3],  # 3 is the list itself: not the lock of `dev`, nor its loop
        "leads its session": True,
        "handlers": [True, True],
        "blocked": [],
    }
    assert of_command == "0.1.0"


@pytest.mark.skipif(not can_fork(), reason="there `dev` runs the commands")
async def test_it_ends_with_a_dev_that_is_killed(tmp_path: Path):
    waits = _DEV.replace("os._exit(3)", "signal.pause()")
    dev = await asyncio.create_subprocess_exec(
        sys.executable, "-c", waits, str(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    log = tmp_path / "worker.log"
    async with asyncio.timeout(PATIENCE_S):
        while not (_text(tmp_path / "worker.pid") and "blocked" in _text(log)):
            await asyncio.sleep(0.02)
        fork = os.pidfd_open(int((tmp_path / "worker.pid").read_text().split()[0]))
        dev.send_signal(signal.SIGKILL)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(fork, ended.set)
        await ended.wait()
        asyncio.get_running_loop().remove_reader(fork)
    os.close(fork)
    await dev.wait()


async def test_without_process_file_descriptors_the_command_runs(tmp_path: Path):
    without = _DEV.replace("async def main", "del os.pidfd_open\n\nasync def main")
    dev = await asyncio.create_subprocess_exec(
        sys.executable, "-c", without, str(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(dev.communicate(), PATIENCE_S)
    assert said.split() == [b"0", b"True", b"0", b"True"]
    assert (tmp_path / "worker.log").read_text().splitlines() == ["0.1.0", "0.1.0"]


def _text(path: Path) -> str:
    """What was written by now."""
    return path.read_text() if path.exists() else ""
