"""What the run needs of this machine: Debian's tools, unpacked and not installed, and a Docker server in
namespaces of its own. The machine's own files, network and processes stay as they are."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evergrant_server.process import end_with_parent
from tests.containers import FOLDER, HERE, ROOT

TOOLS = FOLDER / "tools"
ADDRESS = "10.209.0.1"  # of this network namespace alone: containers reach the test's provider there
_PACKAGES = (
    *("docker.io", "containerd", "runc", "docker-cli", "docker-compose", "buildah", "crun", "conmon"),
    *("netavark", "aardvark-dns", "mmdebstrap", "nftables", "iptables", "tini"),
    *("golang-github-containers-common", "golang-github-containers-image"),
)
GROUP = "evergrant-containers"  # the parent of the containers' control groups
_START_S = 60.0


class StepFailed(Exception):
    """A command of the run failed; its last lines say why."""


@dataclass
class Machine:
    """The namespaces, by the pid of the Docker server that holds them."""

    pid: int

    async def run(
        self,
        *words: str,
        network: bool = True,
        env: dict[str, str] | None = None,
        within_s: float = 600,
        shown: bool = False,
    ) -> str:
        """Run a command inside; `network` False: with the machine's own network, to fetch packages.

        Raises StepFailed.
        """
        parts = ["--mount", "--pid", *(["--net"] if network else [])]
        inside = ("nsenter", f"--target={self.pid}", *parts, f"--wd={ROOT}", "--")
        return await run(*inside, *words, env=env, within_s=within_s, shown=shown)


async def run(
    *words: str, env: dict[str, str] | None = None, within_s: float = 600, shown: bool = False
) -> str:
    """The output of a command; `shown`: it is printed as it comes. Raises StepFailed with its last lines, and
    where it takes too long."""
    child = await asyncio.create_subprocess_exec(
        *words, cwd=ROOT, env=os.environ | (env or {}), stdin=subprocess.DEVNULL,
        stdout=None if shown else subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output = ((await asyncio.wait_for(child.communicate(), within_s))[0] or b"").decode(errors="replace")
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
        if isinstance(error, TimeoutError):
            raise StepFailed(f"{' '.join(words)}: no end within {within_s:.0f} s") from None
        raise
    if child.returncode:
        last = "\n".join(output.strip().splitlines()[-25:])
        raise StepFailed(f"{' '.join(words)}: status {child.returncode}\n{last}")
    return output


async def unpack_tools() -> None:
    """Have apt fetch Debian's packages, from this machine's signed sources, and unpack them, once."""
    if (TOOLS / "complete").exists():
        return
    shutil.rmtree(TOOLS, ignore_errors=True)
    for part in ("lists/partial", "archives/partial"):
        (TOOLS / "apt" / part).mkdir(parents=True)
    options = [
        *("APT::Sandbox::User=root", "Acquire::Retries=3", "Debug::NoLocking=1"),
        *("Dir::State::status=/var/lib/dpkg/status", f"Dir::State::lists={TOOLS}/apt/lists"),
        *(f"Dir::Cache={TOOLS}/apt", f"Dir::Etc::sourcelist={sources()}", "Dir::Etc::sourceparts=/dev/null"),
    ]
    apt = ["apt-get", "--quiet", "--yes", "--no-install-recommends", *(f"-o{option}" for option in options)]
    await run(*apt, "update")
    await run(*apt, "install", "--download-only", "--reinstall", *_PACKAGES)
    for package in sorted((TOOLS / "apt/archives").glob("*.deb")):
        await run("dpkg-deb", "--extract", str(package), str(TOOLS))
    shutil.rmtree(TOOLS / "apt")
    (TOOLS / "complete").touch()


def sources() -> Path:
    """This machine's list of Debian's signed sources."""
    for place in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        if place.exists():
            return place
    raise StepFailed("this machine has no list of Debian's sources: /etc/apt/sources.list.d/debian.sources")


def release() -> str:
    """The name of this Debian."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')


@asynccontextmanager
async def running_docker(scratch: Path) -> AsyncIterator[Machine]:
    """A Docker server in namespaces of its own; everything that it started ends with the block."""
    with (scratch / "docker.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--net", "--uts", "--ipc", "--cgroup", "--pid", "--fork"),
            *("--kill-child", "--mount-proc", "--propagation", "private"),
            *("bash", str(HERE / "ready.sh"), str(TOOLS), str(scratch), ADDRESS, GROUP),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )  # fmt: skip
    try:
        machine = Machine(await _inner_pid(child.pid))
        async with asyncio.timeout(_START_S):
            while True:
                try:
                    await machine.run("docker", "version", within_s=10)
                    break
                except StepFailed:
                    if child.returncode is not None:
                        raise StepFailed(_end_of(scratch / "docker.log")) from None
                    await asyncio.sleep(0.3)
        yield machine
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with the first process of the namespace all others end
        await child.wait()
        await asyncio.to_thread(_remove_groups)


def _remove_groups() -> None:
    """Remove the empty control groups that containers leave: those below the Docker server's own."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    for place in [fields[1] for line in lines if (fields := line.split())[2] == "cgroup2"]:
        for folder, _, _ in os.walk(Path(place) / GROUP, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


async def _inner_pid(outer: int) -> int:
    """The first process inside: the only child of `unshare`."""
    children = Path(f"/proc/{outer}/task/{outer}/children")
    async with asyncio.timeout(_START_S):
        while True:
            with suppress(OSError):
                if pids := (await asyncio.to_thread(children.read_text)).split():
                    return int(pids[0])
            await asyncio.sleep(0.05)


def checked(words: Sequence[str]) -> str:
    return subprocess.run([*words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
