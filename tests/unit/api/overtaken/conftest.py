"""The API over PostgreSQL, where commands run side by side, and its first admin's key."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from evergrant_server.core.access import Action
from tests.fakes.api import Api, running_api
from tests.fakes.databases import lent, postgres_server

__all__ = ["postgres_server"]


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with lent("postgresql", tmp_path) as url, running_api(tmp_path, database_url=url) as running:
        yield running


@pytest_asyncio.fixture
async def admin(api: Api) -> str:
    return await api.app_with("admin", Action.ADMIN)
