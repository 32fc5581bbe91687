"""A database, a provider and an installation for each test, on the Temporal server of the run."""

import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes.databases import lent, postgres_server  # noqa: F401  # a fixture
from tests.fakes.platform.installation import Installation, installation
from tests.fakes.providers.scripted_provider import ScriptedProvider

KINDS = ("sqlite", "postgresql")
ON_BOTH = {"test_takeover", "test_store_restored", "test_delivery_rounds"}
"""What leans on a database's own ways: compare-and-set, queues, queries over many rows."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_url" in metafunc.fixturenames and metafunc.definition.path.stem in ON_BOTH:
        metafunc.parametrize("database_url", KINDS, indirect=True)


@pytest_asyncio.fixture
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database with the newest schema and no rows: of both kinds for the files above, else of the one
    that the test's name falls to. The store's own tests run on both (tests/conformance/store)."""
    falls_to = KINDS[zlib.crc32(request.node.name.encode()) % 2]
    async with lent(getattr(request, "param", falls_to), tmp_path) as url:
        yield url


@pytest_asyncio.fixture
async def idp() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as provider:
        yield provider


@pytest_asyncio.fixture
async def lenient() -> AsyncIterator[ScriptedProvider]:
    """A provider whose refresh tokens stay good."""
    async with ScriptedProvider(rotation="none") as provider:
        yield provider


@pytest_asyncio.fixture
async def place(
    temporal_address: str, database_url: str, tmp_path: Path, idp: ScriptedProvider, lenient: ScriptedProvider
) -> AsyncIterator[Installation]:
    allow = (idp.allowance, lenient.allowance)
    async with installation(temporal_address, database_url, tmp_path, allow=allow) as here:
        yield here
