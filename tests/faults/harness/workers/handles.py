"""Workers in the parent's hand: started through the fork server, asked, stopped, let go on, killed.

Imports nothing of the path.
"""

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

from evergrant_server.core.ids import AppId
from evergrant_server.core.messages.activities import ExchangeCode
from tests.faults.harness.instrumentation.passages import Fault
from tests.faults.harness.instrumentation.points import ROOT

_numbers = itertools.count(1)
_LEAVES_WITHIN_S = 1.0


class WorkerStart(BaseModel):
    """What a worker of a case is told before anything else."""

    name: str
    database_url: str
    key_file: Path
    journals: Path
    allow: str
    public_url: str
    plan: list[Fault] = []
    queued: bool = False
    sweeps_after_s: float = 0.0
    repaired_after_s: float = 0.0  # until then its definition can't read the provider's tokens
    patient: bool = False  # it proves that the connection works: a busy machine must not spoil that


class ConfirmAndExchange(ExchangeCode):
    """The app confirms (again after a crash, as it doesn't know), and then the workflow is told."""

    app_id: AppId
    code: str
    subject: str


class Answer(BaseModel):
    """The outcome of one order: a result, what was raised, or nothing because the worker died."""

    news: dict[str, Any] | None = None
    raised: str | None = None
    passed: list[tuple[str, str, float]] = []

    @property
    def died(self) -> bool:
        return self.news is None and self.raised is None


class WorkerHandle:
    """One worker process: it takes part in one case after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._listening = asyncio.create_task(self._listen())
        self.gone = asyncio.Event()
        self._anew()

    def _anew(self) -> None:
        self.pid, self.journal = 0, ""
        self._ready, self._left = asyncio.Event(), asyncio.Event()
        self.stopped = asyncio.Semaphore(0)
        self._befell: list[tuple[Fault, list[float]]] = []

    async def begin(self, start: BaseModel) -> None:
        """Take part in a case; ready for its orders afterwards."""
        self._anew()
        self._tell({"start": start.model_dump(mode="json")})
        async with asyncio.timeout(30):
            await self._ready.wait()
        if self.gone.is_set():
            raise RuntimeError("a worker did not come up")

    async def ask(self, do: str, call: BaseModel) -> Answer:
        if self.gone.is_set():
            return Answer()
        number = next(_numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        order = {"id": number, "do": do, "call": call.model_dump(mode="json")}
        self._tell(order)
        return await answer

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(json.dumps(message).encode() + b"\n")

    def was_struck_by(self, fault: Fault) -> bool:
        return any(it == fault for it, _ in self._befell)

    def kept_at(self, fault: Fault) -> list[float]:
        """When it had put answers into the journal, before this fault."""
        return next((kept for it, kept in self._befell if it == fault), [])

    def kept(self) -> list[float]:
        """The entries that a worker had kept before its fault, as it reported them."""
        return [at for _, kept in self._befell for at in kept]

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def leave(self) -> bool:
        """The case is over for it. False when it died, is stopped, or has something going on."""
        if self.gone.is_set() or self._waiting:
            return False
        self._tell({"leave": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVES_WITHIN_S):
                await self._left.wait()
        return self._left.is_set() and not self.gone.is_set()

    async def end(self) -> None:
        """Kill it, stopped or not."""
        self._signal(signal.SIGKILL)
        await self.gone.wait()

    def close(self) -> None:
        """No order comes any more: it ends by itself."""
        self._writer.write_eof()

    def _signal(self, number: int) -> None:
        if self.pid and not self.gone.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                told = json.loads(line)
                if "pid" in told:
                    self.pid, self.journal = told["pid"], told["journal"]
                    self._ready.set()
                elif "left" in told:
                    self._left.set()
                elif "at" in told:
                    fault = Fault.model_validate(told["at"])
                    self._befell.append((fault, told["kept"]))
                    if fault.kind == "stop":
                        self.stopped.release()
                else:
                    self._waiting.pop(told.pop("id")).set_result(Answer(**told))
        self.gone.set()
        self._ready.set()
        self._left.set()
        self._writer.close()
        for answer in self._waiting.values():
            if not answer.done():  # its case ran out of time
                answer.set_result(Answer())
        self._waiting.clear()


class ForkServer:
    """The fork server's process."""

    def __init__(self, child: asyncio.subprocess.Process, path: Path) -> None:
        self._child, self._path = child, path
        self._free: list[WorkerHandle] = []

    @classmethod
    async def start(cls, folder: Path, *broken: str) -> Self:
        path = folder / f"warm-{next(_numbers)}.sock"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.harness.workers.fork_server", str(path), *broken,
            cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python/src'}"},
        )  # fmt: skip
        assert child.stdout is not None
        async with asyncio.timeout(60):
            if await child.stdout.readline() != b"warm\n":
                raise RuntimeError("the fork server did not come up")
        return cls(child, path)

    async def hand(self, start: BaseModel) -> WorkerHandle:
        """A worker, ready for orders: one that has left its case, or a new one."""
        hand = self._free.pop() if self._free else await self._new()
        await hand.begin(start)
        return hand

    async def back(self, hand: WorkerHandle) -> None:
        """End its case. A worker that still has tasks of the case is killed."""
        if await hand.leave():
            self._free.append(hand)
        else:
            await hand.end()

    async def _new(self) -> WorkerHandle:
        return WorkerHandle(*await asyncio.open_unix_connection(str(self._path), limit=1 << 20))

    async def rehearsed(self, hand: WorkerHandle) -> None:
        """The first one was the fork server itself: from now on it forks."""
        if not await hand.leave():
            raise RuntimeError("the rehearsal has no end")
        hand.close()
        await hand.gone.wait()

    async def stop(self) -> None:
        await asyncio.gather(*(it.end() for it in self._free))
        self._child.terminate()
        await self._child.wait()
