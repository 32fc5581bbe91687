"""Workers in the parent's hand: started through the fork server, asked, stopped, let go on, killed."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from tests.faults.harness.passages import Fault
from tests.faults.harness.points import ROOT

_numbers = itertools.count(1)


class Answer(BaseModel):
    """What came of one order: news, what was raised, or nothing because the worker died."""

    news: dict[str, Any] | None = None
    raised: str | None = None
    passed: list[tuple[str, str, float]] = []

    @property
    def died(self) -> bool:
        return self.news is None and self.raised is None


class Hand:
    """One worker process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._listening = asyncio.create_task(self._listen())
        self.pid = 0
        self.ready = asyncio.Event()
        self.stopped = asyncio.Semaphore(0)
        self._befell: list[Fault] = []
        self.gone = asyncio.Event()

    async def ask(self, do: str, call: BaseModel) -> Answer:
        if self.gone.is_set():
            return Answer()
        number = next(_numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        order = {"id": number, "do": do, "call": call.model_dump(mode="json")}
        with contextlib.suppress(ConnectionError):
            self._writer.write(json.dumps(order).encode() + b"\n")
            await self._writer.drain()
        return await answer

    def befell(self, fault: Fault) -> bool:
        return fault in self._befell

    def goes_on(self) -> None:
        self._signal(signal.SIGCONT)

    async def leave(self) -> None:
        """Let it end by itself: it has no orders any more."""
        self._writer.write_eof()
        await self.gone.wait()

    async def end(self) -> None:
        """Kill it, stopped or not."""
        self._signal(signal.SIGKILL)
        await self.gone.wait()

    def _signal(self, number: int) -> None:
        if self.pid and not self.gone.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                told = json.loads(line)
                if "pid" in told:
                    self.pid = told["pid"]
                    self.ready.set()
                elif "at" in told:
                    fault = Fault.model_validate(told["at"])
                    self._befell.append(fault)
                    if fault.kind == "stop":
                        self.stopped.release()
                else:
                    self._waiting.pop(told.pop("id")).set_result(Answer(**told))
        self.gone.set()
        self.ready.set()
        self._writer.close()
        for answer in self._waiting.values():
            answer.set_result(Answer())
        self._waiting.clear()


class Warm:
    """The fork server's process."""

    def __init__(self, child: asyncio.subprocess.Process, path: Path) -> None:
        self._child, self._path = child, path

    @classmethod
    async def start(cls, folder: Path, *broken: str) -> Self:
        path = folder / f"warm-{next(_numbers)}.sock"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.harness.warm", str(path), *broken,
            cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python/src'}"},
        )  # fmt: skip
        assert child.stdout is not None
        async with asyncio.timeout(60):
            if await child.stdout.readline() != b"warm\n":
                raise RuntimeError("the fork server did not come up")
        return cls(child, path)

    async def hand(self, start: BaseModel) -> Hand:
        """A new worker, ready for orders."""
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        writer.write(start.model_dump_json().encode() + b"\n")
        hand = Hand(reader, writer)
        async with asyncio.timeout(30):
            await hand.ready.wait()
        if hand.gone.is_set():
            raise RuntimeError("a worker did not come up")
        return hand

    async def stop(self) -> None:
        self._child.terminate()
        await self._child.wait()
