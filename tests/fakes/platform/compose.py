"""docker-compose.yml without an engine: its services' commands and environment, run as processes here.

Host names and folders of the file are replaced by ones of this machine, and nothing else.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.warm import WarmProcess, warm_output

ROOT = Path(__file__).parents[3]


class Compose:
    """The file, with `given` as the environment of `docker compose up`, and what an operator has put into the
    files `.env` and `compose.override.yaml` of `project`: variables, and volumes."""

    def __init__(self, replaced: Mapping[str, str], given: Mapping[str, str], project: Path) -> None:
        self.document = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
        self._replaced = replaced
        self._given = given
        self._project = project

    def environment(self, service: str) -> dict[str, str]:
        """What the container would see, on this machine."""
        own = {name: self.here(str(value)) for name, value in self._of(service)["environment"].items()}
        for folder, volume in self.mounts(service).items():
            if volume.startswith("./"):  # of the host
                here = str(self._project / volume.removesuffix(":ro"))
                own = {name: value.replace(folder, here) for name, value in own.items()}
        python = str(Path(sys.executable).parent)  # the image's `python`
        home = os.environ.get("HOME", "/")
        return {"PATH": f"{python}:{os.defpath}", "HOME": home, "PYTHONUNBUFFERED": "1", **own}

    def arguments(self, service: str) -> list[str]:
        """The service's whole command line: its entrypoint, or the image's, and its command."""
        return [*self.entrypoint(service), *map(self.here, self._of(service)["command"])]

    def entrypoint(self, service: str) -> list[str]:
        """Its own, or the image's."""
        return [self.here(part) for part in self._of(service).get("entrypoint") or image_entrypoint()]

    def probe(self, service: str) -> list[str]:
        """The command of its health check."""
        kind, *command = self._of(service)["healthcheck"]["test"]
        assert kind == "CMD"
        return [self.here(part) for part in command]

    def mounts(self, service: str) -> dict[str, str]:
        """Volume by folder, with `:ro` where it is read-only."""
        pairs = (it.partition(":") for it in self._of(service)["volumes"])
        return {target.removesuffix(":ro"): source + target[len(target.removesuffix(":ro")) :]
                for source, _, target in pairs}  # fmt: skip

    async def run(self, service: str, *command: str, extra: Mapping[str, str] | None = None) -> str:
        """Run a one-shot service (or another command of its image) to its end; returns what it printed."""
        env = {**self.environment(service), **(extra or {})}
        if command:
            return await warm_output([*command], env)
        return await finished(self.arguments(service), env, 4 * PATIENCE_S)  # `init` starts four processes

    async def start(self, service: str, log: Path, extra: Mapping[str, str]) -> "Running":
        """Start a long-running service; `Running.until` waits for what says that it is ready."""
        env = {**self.environment(service), **extra}
        with log.open("wb") as output:
            child = await asyncio.create_subprocess_exec(
                *self.arguments(service), cwd=ROOT, env=env, stdin=asyncio.subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        return Running(service, child, log)

    async def healthy(self, service: str, extra: Mapping[str, str]) -> bool:
        """Does its health check pass?"""
        try:
            await finished(self.probe(service), {**self.environment(service), **extra})
        except AssertionError:
            return False
        return True

    def _of(self, service: str) -> dict[str, Any]:
        known = {"environment": {}, "volumes": [], **self.document["services"][service]}
        override = self._project / "compose.override.yaml"
        if override.exists():
            added = yaml.safe_load(override.read_text(encoding="utf-8"))["services"].get(service, {})
            assert set(added) <= {"volumes"}, added
            known["volumes"] = [*known["volumes"], *added.get("volumes", [])]
        return known

    def _variables(self) -> dict[str, str]:
        file = self._project / ".env"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return {**{name: value for name, _, value in (line.partition("=") for line in lines)}, **self._given}

    def here(self, text: str) -> str:
        """The same text with the host names and folders of this machine."""
        variables = self._variables()
        filled = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda it: variables.get(it[1]) or it[2], text)
        filled = filled.replace("$$", "$")
        for there, here in self._replaced.items():
            filled = filled.replace(there, here)
        return filled


class Running:
    """A service's process, ended by its pid."""

    def __init__(self, name: str, child: asyncio.subprocess.Process | WarmProcess, log: Path) -> None:
        self.name = name
        self._child = child
        self._log = log

    async def until(self, ready: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> None:
        """Wait for `ready`. Raises AssertionError with the log when the process ends first."""
        async with asyncio.timeout(within_s):
            while not await ready():
                assert self._child.returncode is None, f"{self.name} ended:\n{self.log()}"
                await asyncio.sleep(0.1)

    async def says(self, words: str) -> None:
        """Wait until it has printed these words."""

        async def said() -> bool:
            return words in self.log()

        await self.until(said)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def stop(self, within_s: float = PATIENCE_S) -> int:
        """SIGTERM, as compose sends it; returns the exit status."""
        if self._child.returncode is None:
            self._child.terminate()
            try:
                await asyncio.wait_for(self._child.wait(), within_s)
            except TimeoutError:
                self._child.kill()
        return await self._child.wait()


def image_entrypoint() -> list[str]:
    """What the Dockerfile runs when a service says nothing else."""
    found = re.search(
        r"^ENTRYPOINT (\[.*\])$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return json.loads(found[1])


async def finished(arguments: list[str], env: Mapping[str, str], within_s: float = PATIENCE_S) -> str:
    """Run to the end and return its output. Raises AssertionError with its words when it fails."""
    child = await asyncio.create_subprocess_exec(
        *arguments, cwd=ROOT, env=dict(env), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(child.communicate(), within_s)
    except BaseException:
        child.kill()
        await child.wait()
        raise
    assert b"Traceback" not in err, err.decode()
    assert child.returncode == 0, f"{arguments} ended with {child.returncode}:\n{(err + out).decode()}"
    return out.decode()
