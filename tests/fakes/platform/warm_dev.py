"""`dev` in a fork that has imported it already, for tests of what it runs."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from evergrant_server.cli.dev.messages import READY
from examples.demo.platform import EvergrantProcess, dev_command, dev_environment
from examples.demo.processes import DidNotStart, Process
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.warm import WarmProcess
from tests.fakes.temporal import CHEAP


class _Dev(Process):
    """What `EvergrantProcess` uses of the process that it starts."""

    def __init__(self, child: WarmProcess, out: Path) -> None:
        self._process, self._out = child, out

    @property
    def pid(self) -> int:
        return self._process.pid

    async def stop(self, grace: float = PATIENCE_S) -> int:
        self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            return await self._process.wait()
        finally:
            self._out.unlink()

    async def until_ready(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while READY not in (said := self._out.read_text(encoding="utf-8")):
                if self._process.returncode is not None:
                    raise DidNotStart(said)
                await asyncio.sleep(0.05)


async def start_dev(
    data: Path, egress_allow: str, settings: Mapping[str, str] | None = None, *, port: int | None = None
) -> EvergrantProcess:
    """As `EvergrantProcess.start`, with these settings in the environment, at this port or a free one."""
    out = data.with_name(f"{data.name}-dev.out")
    out.touch()  # it is read until the fork writes to it
    env = {**CHEAP, **dev_environment(egress_allow), **(settings or {})}  # `CHEAP` is its Temporal's
    child = await WarmProcess.start(dev_command(data, port), env, out, out)
    process = _Dev(child, out)
    try:
        await process.until_ready()
    except BaseException:
        await process.stop()
        raise
    return EvergrantProcess(process, data)
