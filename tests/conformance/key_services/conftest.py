"""A key service is started once for a module, and what a process opened of it lives through all the tests."""

from collections.abc import AsyncIterator
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """Of the backend that is the test's parameter; with the environment that the vendor's library reads."""
    backend: Backend = request.param
    async with World.of(backend).running(tmp_path_factory.mktemp("key-service")) as world:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in world.environment.items():
                patch.setenv(name, value)
            service = world.opened()
            yield Running(world, service)
            await service.close()
