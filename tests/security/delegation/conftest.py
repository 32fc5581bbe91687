"""Apps that may act for people, and the first admin's key."""

import pytest

from evergrant_server.api.apps.keys import bootstrap_admin
from tests.fakes.api import TENANT, Api, api
from tests.security.delegation.delegating import Delegating

__all__ = ["api"]


@pytest.fixture
async def admin(api: Api) -> str:
    return await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)


@pytest.fixture
async def some(api: Api, admin: str) -> Delegating:
    found = Delegating(api, admin)
    await found.prepare()
    return found
