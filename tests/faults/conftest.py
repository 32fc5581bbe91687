"""One Temporal server for the run; a database of each kind, a provider and an installation per test."""

import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest_asyncio

from evergrant_server.temporal_link.namespace import prepare
from tests.fakes.databases import database_url, postgres_server  # noqa: F401  # fixtures
from tests.fakes.installation import Installation, installation
from tests.fakes.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def temporal_address() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        async with running_temporal(Path(folder)) as server:
            await prepare(await server.client(), timedelta(days=365))
            yield server.address


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
    temporal_address: str,
    database_url: str,  # noqa: F811  # the fixture
    tmp_path: Path,
    idp: ScriptedProvider,
    lenient: ScriptedProvider,
) -> AsyncIterator[Installation]:
    allow = (idp.allowance, lenient.allowance)
    async with installation(temporal_address, database_url, tmp_path, allow=allow) as here:
        yield here
