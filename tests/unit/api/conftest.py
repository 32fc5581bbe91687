"""One API over a real SQLite store for each test, and its first admin's key."""

import pytest

from evergrant_server.api.apps.keys import bootstrap_admin
from tests.fakes.api import TENANT, Api, api

__all__ = ["admin", "api"]


@pytest.fixture
async def admin(api: Api) -> str:
    return await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)
