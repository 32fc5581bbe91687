"""A key service is started once for a module, and what a process opened of it lives through all the tests."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest
import pytest_asyncio

from evergrant_server.crypto.key_services.bound import BoundKeyService
from tests.fakes.key_services.acts import Backend
from tests.fakes.key_services.world import World


class Running(NamedTuple):
    """A key service, and what a process has opened of it."""

    world: World
    service: BoundKeyService


class Worlds:
    """The key services that the module's tests have asked for, and the environment for their libraries."""

    def __init__(self, stack: AsyncExitStack, folders: pytest.TempPathFactory) -> None:
        self._stack, self._folders = stack, folders
        self._patch = stack.enter_context(pytest.MonkeyPatch.context())
        self._running: dict[str, Running] = {}

    async def of(self, backend: Backend) -> Running:
        if backend.title not in self._running:
            running = World.of(backend).running(self._folders.mktemp("key-service"))
            world = await self._stack.enter_async_context(running)
            for name, value in world.environment.items():
                self._patch.setenv(name, value)
            self._running[backend.title] = Running(world, world.opened())
            self._stack.push_async_callback(self._running[backend.title].service.close)
        return self._running[backend.title]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worlds]:
    async with AsyncExitStack() as stack:
        yield Worlds(stack, tmp_path_factory)


@pytest_asyncio.fixture(loop_scope="module")
async def running(request: pytest.FixtureRequest, worlds: Worlds) -> Running:
    """The service of the backend that is the test's parameter."""
    return await worlds.of(request.param)
