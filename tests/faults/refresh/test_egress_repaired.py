"""An operator's egress setting refuses the provider's host: the refusal names it and ends with its repair."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import STRICT, Installation, running_worker


@pytest.fixture
def with_worker() -> bool:
    return False


@asynccontextmanager
async def allowing(place: Installation, *allow: str) -> AsyncIterator[None]:
    """A worker that was started with this setting."""
    async with running_worker(place.parts.settings.model_copy(update={"egress_allow": allow})):
        yield


async def refreshed(http: httpx2.AsyncClient, connection: Connection) -> Any:
    """The answer to an admin's refresh, once it has ended."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await http.post(f"/v1/connections/{connection.id}/refresh", json={})
            if answer.json().get("code") != ErrorCode.REFRESH_PENDING:
                return answer


async def test_the_refusal_names_the_host_and_ends_with_its_repair(place: Installation):
    async with place.api() as http:
        async with allowing(place, place.idp.allowance):
            connection = await place.connect(STRICT)
        async with allowing(place):
            refused = await refreshed(http, connection)
            again = await refreshed(http, connection)
        for answer in (refused, again):
            assert (answer.status_code, answer.json()["code"]) == (424, ErrorCode.EGRESS_REFUSED)
            assert answer.json()["detail"].startswith(place.idp.allowance)
            assert answer.json()["repair"].endswith(f"EVERGRANT_EGRESS_ALLOW={place.idp.allowance}")
        failed, *_ = await place.audited(connection, AuditAction.REFRESH_FAILED)
        assert failed.detail["host"] == "127.0.0.1"
        async with allowing(place, place.idp.allowance):
            repaired = await refreshed(http, connection)
        assert (repaired.status_code, repaired.json()["generation"]) == (200, 2)
