"""SoftHSM, a token of PKCS#11 without hardware (Debian's softhsm2 and opensc: requirements/debian.sh).

Its keys are made by pkcs11-tool, as a person would, and the module is called through pkcs11-spy, which writes
each call down: how often a PIN was entered is read there. Without them the tests are skipped.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote

import pkcs11
import pytest

from evergrant_server.crypto.key_services.port import ServicePurpose
from tests.fakes.key_services import acts
from tests.fakes.key_services.world import World

_ROOT = Path(__file__).parents[3]
_UNPACKED = Path(sys.prefix) / "debian"
PIN, _SO_PIN, _LABEL = "815-4711", "so-815-4711", "evergrant tests"


def _file(pattern: str) -> Path | None:
    return next((path for root in (_UNPACKED / "usr", Path("/usr")) for path in root.glob(pattern)), None)


class SoftHsmWorld(World):
    BACKEND = acts.PKCS11

    def __init__(self, folder: Path, module: Path, spy: Path, tools: dict[str, str]) -> None:
        self._folder, self._module, self._spy, self._tools = folder, module, str(spy), tools
        self._pin_file = folder / "pin"
        self._pin_file.write_text(PIN + "\n")
        pin = f"pin-source=file:{self._pin_file}"
        self.url = f"pkcs11:token={quote(_LABEL)};object=evergrant-{{purpose}}?module-path={spy}&{pin}"
        self.environment = {
            "SOFTHSM2_CONF": str(folder / "softhsm2.conf"),
            "PKCS11SPY": str(module),
            "PKCS11SPY_OUTPUT": str(folder / "calls"),
        }
        self.secrets = (PIN,)

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        module = _file("lib/softhsm/libsofthsm2.so")
        spy = _file("lib/*/pkcs11/pkcs11-spy.so") or _file("lib/*/pkcs11-spy.so")
        tools = {name: str(_file(f"bin/{name}")) for name in ("softhsm2-util", "pkcs11-tool")}
        if module is None or spy is None or "None" in tools.values():
            pytest.skip(f"no SoftHSM and OpenSC in {_UNPACKED} or /usr (bash requirements/debian.sh VENV)")
        (folder / "tokens").mkdir()
        (folder / "softhsm2.conf").write_text(
            f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        world = cls(folder, module, spy, tools)
        pins = ("--pin", PIN, "--so-pin", _SO_PIN)
        token = ("--init-token", "--free", "--label", _LABEL, *pins)
        await world._ran("softhsm2-util", "--module", str(module), *token)
        for purpose in ServicePurpose:
            await world.new_key(purpose)
        try:
            yield world
        finally:
            pkcs11.lib(world._spy).finalize()  # it reads its environment once, when it is initialized

    async def new_key(self, purpose: ServicePurpose, *options: str) -> None:
        flags = ("--sensitive", *options)
        await self._tool("--keygen", "--key-type", "AES:32", "--label", f"evergrant-{purpose}", *flags)

    async def delete_key(self, purpose: ServicePurpose) -> None:
        await self._tool("--delete-object", "--type", "secrkey", "--label", f"evergrant-{purpose}")

    def environment_of(self, calls: Path) -> dict[str, str]:
        """The environment of a process of its own, which writes its calls into this file."""
        return {**os.environ, **self.environment, "PKCS11SPY_OUTPUT": str(calls), "PYTHONPATH": str(_ROOT)}

    def with_pin(self, pin: str) -> None:
        self._pin_file.write_text(pin)

    async def log_in(self) -> None:
        """As the person who checked the PIN."""
        await self._tool("--list-objects")

    @asynccontextmanager
    async def without_token(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        """The token is gone, and its driver was started anew."""
        os.rename(self._folder / "tokens", self._folder / "aside")
        (self._folder / "tokens").mkdir()
        pkcs11.lib(self._spy).reinitialize()
        try:
            yield
        finally:
            (self._folder / "tokens").rmdir()
            os.rename(self._folder / "aside", self._folder / "tokens")

    @asynccontextmanager
    async def locked(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        """Another process holds the locks that SoftHSM waits for."""
        script = (
            "import fcntl, pathlib, sys, time\n"
            "held = [open(path, 'r+b') for path in pathlib.Path(sys.argv[1]).rglob('*') if path.is_file()]\n"
            "[fcntl.lockf(file, fcntl.LOCK_EX) for file in held]\n"
            "print(len(held), flush=True); time.sleep(600)"
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(self._folder / "tokens"), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        await child.stdout.readline()
        try:
            yield
        finally:
            child.kill()
            await child.wait()

    @asynccontextmanager
    async def without_pin(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        """The file with the PIN isn't there when the process starts."""
        self._pin_file.unlink()
        try:
            yield
        finally:
            self.with_pin(PIN)

    @asynccontextmanager
    async def with_wrong_pin(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        """Nobody is logged in, and a process starts with a wrong PIN."""
        pkcs11.lib(self._spy).reinitialize()
        self.with_pin("4711-815")
        try:
            yield
        finally:
            self.with_pin(PIN)

    @asynccontextmanager
    async def deleted(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        await self.delete_key(purpose)
        try:
            yield
        finally:
            await self.new_key(purpose)

    async def _tool(self, *arguments: str) -> None:
        login = ("--module", str(self._module), "--token-label", _LABEL, "--login", "--pin", PIN)
        await self._ran("pkcs11-tool", *login, *arguments)

    async def _ran(self, name: str, *arguments: str) -> None:
        libraries = {str(path.parent) for path in (_UNPACKED / "usr" / "lib").rglob("*.so*")}
        env = {**os.environ, **self.environment, "LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries))}
        child = await asyncio.create_subprocess_exec(
            self._tools[name],
            *arguments,
            env=env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await child.communicate()
        assert child.returncode == 0, output.decode(errors="replace")
