"""Commands of the server in forks of a process that has imported them: seconds of imports fewer each.

Each is a process of its own, in a session of its own. What a test proves about a start (command line,
imports, what other processes read in its environment) it proves with `python -m evergrant_server` itself.

python -m tests.fakes.platform.warm SOCKET: the process that forks, one for each test process that asks.
"""

import asyncio
import atexit
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Self, TextIO

from providers.definition.registry import Registry

ROOT = Path(__file__).parents[3]
_IMPORTED = (
    "evergrant_server.asgi",
    "evergrant_server.cli.doctor.report",
    "evergrant_server.cli.db",
    "evergrant_server.cli.keys",
    "evergrant_server.cli.operate",
    "evergrant_server.cli.serve",
    "evergrant_server.cli.tenants",
    "worker",
)
# for the first of these commands that a run needs
_IMPORTED_FOR = {
    "db": ("alembic.command", "alembic.config"),
    "gateway": ("evergrant_server.cli.serve_gateway",),
}


_PYTHON = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:3] != ["-m", "evergrant_server"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
here, umask = f"/proc/{{os.getpid()}}/fd", os.umask(0o077)
order = {{"arguments": sys.argv[3:], "env": dict(os.environ), "out": here + "/1", "err": here + "/2"}}
line.sendall(json.dumps({{**order, "folder": os.getcwd(), "umask": umask}}).encode() + b"\\n")
with line.makefile() as told:
    pid, status = told.readline(), told.readline()
sys.exit(max(int(status), 0) or bool(int(status)))
"""


class WarmProcess:
    """A command that runs, or has run: what of `asyncio.subprocess.Process` tests use."""

    def __init__(self, pid: int, told: asyncio.StreamReader, line: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._line = line
        self._ended = asyncio.create_task(self._listen(told))

    @classmethod
    async def start(cls, arguments: list[str], env: Mapping[str, str], out: Path, err: Path) -> Self:
        """Start `python -m evergrant_server` with these arguments; its output is added to the files."""
        for path in (out, err):
            path.touch(0o600)  # it can be read at once
        told, line = await asyncio.open_unix_connection(str(_forking()))
        order = {"arguments": arguments, "env": dict(env), "out": str(out), "err": str(err)}
        line.write(json.dumps(order).encode() + b"\n")
        return cls(json.loads(await told.readline()), told, line)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def _listen(self, told: asyncio.StreamReader) -> int:
        self.returncode = json.loads(await told.readline())
        self._line.close()
        return self.returncode


async def warm_output(arguments: list[str], env: Mapping[str, str]) -> str:
    """Run a command to its end and return its output. Raises AssertionError with its words when it fails."""
    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        status = await (await WarmProcess.start(arguments, env, out, err)).wait()
        said, complaint = out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
    assert "Traceback" not in complaint, complaint
    assert status == 0, f"{arguments} ended with {status}:\n{complaint}{said}"
    return said


@cache
def warm_python() -> Path:
    """A folder for the front of PATH, whose `python -m evergrant_server` is a fork: for the commands of a
    page, which read nothing from their standard input.
    """
    folder = _forking().parent / "bin"
    folder.mkdir()
    program = folder / "python"
    program.write_text(_PYTHON.format(python=sys.executable, address=str(_forking())), encoding="utf-8")
    program.chmod(0o755)
    return folder


@cache
def _forking() -> Path:
    """Start the process that forks, at the first use. Returns the path of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="evergrant-warm-"))
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python/src'}"}
    command = [sys.executable, "-m", "tests.fakes.platform.warm", str(folder / "socket")]
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"warm\n"

    def stop() -> None:
        child.kill()
        child.communicate()
        shutil.rmtree(folder)

    atexit.register(stop)
    return folder / "socket"


def _serve(path: str) -> NoReturn:
    gc.disable()
    for name in _IMPORTED:
        importlib.import_module(name)
    Registry.load()
    gc.freeze()
    gc.enable()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    print("warm", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes away who watches
    while True:
        line, _ = listening.accept()
        told = line.makefile("rw", encoding="utf-8")
        if text := told.readline():  # else the test has ended
            order = json.loads(text)
            for name in _IMPORTED_FOR.get(order["arguments"][0], ()):
                importlib.import_module(name)
            if not os.fork():
                listening.close()
                _watch(line, told, order)
        told.close()
        line.close()


def _watch(line: socket.socket, told: TextIO, order: dict[str, Any]) -> NoReturn:
    """Run one command in a process of its own, and say its pid and its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not (pid := os.fork()):
        told.close()
        line.close()
        _become(**order)
    _say(told, pid)
    _say(told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _say(told: TextIO, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the test has ended
        print(number, file=told, flush=True)


def _become(
    arguments: list[str],
    env: dict[str, str],
    out: str,
    err: str,
    folder: str = str(ROOT),
    umask: int | None = None,
) -> NoReturn:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = ["evergrant_server", *arguments]
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    if umask is not None:
        os.umask(umask)
    app: Any = importlib.import_module("evergrant_server.cli.app")
    app.main(arguments)
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
