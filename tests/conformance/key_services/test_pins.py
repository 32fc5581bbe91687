"""A wrong PIN is entered once: not again by the same process, not by others, not after a restart."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from evergrant_server.crypto.key_services.port import Context, ServicePurpose
from tests.conformance.key_services.conftest import Running
from tests.fakes.key_services import acts
from tests.fakes.key_services.softhsm import PIN, SoftHsmWorld

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROW = Context("root_of_the_test")
# a process that unwraps whenever it is told to, and says what came of it
PROCESS = """\
import asyncio, sys
from pathlib import Path
from evergrant_server.crypto.key_services.opening import open_key_service
from evergrant_server.crypto.key_services.port import Context, KeyServiceFailure, ServicePurpose

async def unwrapped(service):
    try:
        await service.unwrap(ServicePurpose.LEASE, bytes.fromhex(sys.argv[2]), Context(sys.argv[3]))
    except KeyServiceFailure as failure:
        return failure.reason.value + ' ' + failure.detail
    return 'opened'

async def main():
    service = open_key_service(sys.argv[1], Path('keys.json'))
    for _ in sys.stdin:
        print(await unwrapped(service), flush=True)

asyncio.run(main())
"""
FORKING = """\
import os
sys.stdin.readline()

async def once():
    service = open_key_service(sys.argv[1], Path('keys.json'))
    print(await unwrapped(service), flush=True)
    await service.close()

asyncio.run(once())
if os.fork():
    os.wait()
else:
    asyncio.run(main())
"""


class Process:
    """A process of Evergrant with a key service of its own; `calls` is what it called of the module."""

    def __init__(self, child: asyncio.subprocess.Process, calls: Path) -> None:
        self._child, self._calls = child, calls

    async def unwrap(self) -> str:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(b"\n")
        return (await self._child.stdout.readline()).decode().strip()

    def logins(self) -> int:
        text = self._calls.read_text(errors="replace") if self._calls.exists() else ""
        return text.count(": C_Login\n")


@asynccontextmanager
async def process(
    world: SoftHsmWorld, wrapped: bytes, calls: Path, script: str = PROCESS
) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, world.url, wrapped.hex(), ROW.row),
        env=world.environment_of(calls),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(child, calls)
    finally:
        assert child.stdin is not None
        child.stdin.close()  # it ends with its input
        await child.wait()


@pytest.mark.parametrize("running", [acts.PKCS11], indirect=True, ids=["softhsm"])
async def test_a_wrong_pin_is_entered_once(running: Running, tmp_path: Path) -> None:
    world = running.world
    assert isinstance(world, SoftHsmWorld)
    wrapped = await running.service.wrap(ServicePurpose.LEASE, b"value", ROW)
    world.with_pin("4711-815")
    async with process(world, wrapped, tmp_path / "first") as first:
        assert (await first.unwrap()).startswith("denied ")
        assert "PinIncorrect" not in (refusal := await first.unwrap())
        assert "isn't tried again" in refusal
        assert "4711" not in refusal
        assert (await first.unwrap()) == refusal
        assert first.logins() == 1
        async with process(world, wrapped, tmp_path / "second") as second:
            assert "log in with that PIN once" in await second.unwrap()
            world.with_pin(PIN)
            assert "log in with that PIN once" in await second.unwrap()
            assert second.logins() == 0
            assert await first.unwrap() == "opened"
            assert first.logins() == 2
            assert await second.unwrap() == "opened", "the first process's login cleared the token's warning"
            assert second.logins() == 1


@pytest.mark.parametrize("running", [acts.PKCS11], indirect=True, ids=["softhsm"])
async def test_after_a_restart_a_person_logs_in_first(running: Running, tmp_path: Path) -> None:
    """Processes that are restarted again and again don't lock the token."""
    world = running.world
    assert isinstance(world, SoftHsmWorld)
    wrapped = await running.service.wrap(ServicePurpose.LEASE, b"value", ROW)
    world.with_pin("4711-815")
    attempts = []
    for number in range(3):
        async with process(world, wrapped, tmp_path / str(number)) as restarted:
            assert (await restarted.unwrap()).startswith("denied ")
            attempts.append(restarted.logins())
    assert attempts == [1, 0, 0]
    world.with_pin(PIN)
    await world.log_in()
    async with process(world, wrapped, tmp_path / "repaired") as repaired:
        assert await repaired.unwrap() == "opened"


@pytest.mark.parametrize("running", [acts.PKCS11], indirect=True, ids=["softhsm"])
async def test_a_fork_has_a_module_of_its_own(running: Running, tmp_path: Path) -> None:
    """`serve` opens the service, closes it, and forks the processes that open it again."""
    world = running.world
    assert isinstance(world, SoftHsmWorld)
    wrapped = await running.service.wrap(ServicePurpose.LEASE, b"value", ROW)
    script = PROCESS.replace("asyncio.run(main())", FORKING)
    async with process(world, wrapped, tmp_path / "calls", script) as parent:
        assert await parent.unwrap() == "opened"
        assert await parent.unwrap() == "opened"


@pytest.mark.parametrize("running", [acts.PKCS11], indirect=True, ids=["softhsm"])
async def test_a_key_that_can_be_extracted_wraps_nothing(running: Running) -> None:
    world = running.world
    assert isinstance(world, SoftHsmWorld)
    await world.delete_key(ServicePurpose.GATEWAY)
    await world.new_key(ServicePurpose.GATEWAY, "--extractable")
    with pytest.raises(Exception, match="can be extracted"):
        await running.service.wrap(ServicePurpose.GATEWAY, b"value", ROW)
    await world.delete_key(ServicePurpose.GATEWAY)
    await world.new_key(ServicePurpose.GATEWAY)
