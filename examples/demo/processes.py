"""Child processes that print a line when they are ready, and are stopped by pid."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evergrant_server.process import end_with_parent

ROOT = Path(__file__).resolve().parents[2]


class DidNotStart(RuntimeError):
    """A process exited, or printed nothing in time, before it was ready."""


class Process:
    """One child process, in a session of its own, so that Ctrl-C doesn't reach it directly."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self.name = name
        self.ready = ready
        self._child = child
        self._drains: list[asyncio.Task[None]] = []
        self.last_lines: deque[str] = deque(maxlen=40)

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        ready_prefix: str = "",
        within_s: float = 180,
        env: Mapping[str, str] | None = None,
        program: str = sys.executable,
    ) -> "Process":
        """Run `program` (default: this Python) and wait for a line with `ready_prefix` and perhaps JSON.

        An empty prefix waits for a JSON object. Raises DidNotStart with the child's last lines.
        """
        child = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            cwd=ROOT,
            env=dict(env) if env is not None else None,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
            limit=1 << 20,
        )
        process = cls(name, child, {})
        assert child.stderr is not None
        process._drain(child.stderr)
        try:
            process.ready = await asyncio.wait_for(process._until_ready(ready_prefix), within_s)
        except BaseException as error:
            await process.stop()
            if isinstance(error, TimeoutError):
                raise DidNotStart(process._with_last_lines(f"printed nothing for {within_s:.0f} s")) from None
            raise
        assert child.stdout is not None
        process._drain(child.stdout)
        return process

    async def stop(self, grace: float = 30) -> int:
        """Send SIGTERM, wait, and kill it after `grace` seconds. Returns its exit status."""
        if self._child.returncode is None:
            self._child.terminate()
            try:
                await asyncio.wait_for(self._child.wait(), grace)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
                await self._child.wait()
        await asyncio.gather(*self._drains)
        assert self._child.returncode is not None
        return self._child.returncode

    async def _until_ready(self, prefix: str) -> dict[str, Any]:
        assert self._child.stdout is not None
        async for raw in self._child.stdout:
            line = raw.decode(errors="replace").rstrip()
            rest = line.removeprefix(prefix)
            if line.startswith(prefix) and rest.startswith("{"):
                return json.loads(rest)
            if prefix and line.startswith(prefix):
                return {}
            self.last_lines.append(line)
        await self._child.wait()
        raise DidNotStart(self._with_last_lines(f"ended with status {self._child.returncode}"))

    def _drain(self, stream: asyncio.StreamReader) -> None:
        async def read() -> None:
            async for raw in stream:
                self.last_lines.append(raw.decode(errors="replace").rstrip())

        self._drains.append(asyncio.create_task(read()))

    def _with_last_lines(self, what: str) -> str:
        return f"{self.name} {what}\n" + "\n".join(f"  {line}" for line in self.last_lines)
