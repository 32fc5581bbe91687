"""Where a worker sends secrets, when someone changed that in the database."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints
from evergrant_server.store.connections.tables import ConsentRow
from evergrant_server.store.database.columns import Row
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.integrations.tables import IntegrationRow
from tests.fakes.failures import fails
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import STRICT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.faults.support.activities import Activities


@pytest_asyncio.fixture
async def evil() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as server:
        yield server


@pytest.fixture
def allow(evil: ScriptedProvider) -> tuple[str, ...]:
    return (evil.allowance,)


async def by_hand(place: Installation, table: type[Row], id: str, **values: Any) -> None:
    async with place.store.write() as tx:
        await tx.connection.execute(update(table).where(columns_equal(table, id=id)).values(values))


async def endpoints_at(place: Installation, connection: Connection, server: ScriptedProvider) -> None:
    there = Endpoints(token_endpoint=server.url("token"), revocation_endpoint=server.url("revoke"))
    endpoints = there.model_dump(mode="json")
    await by_hand(place, IntegrationRow, connection.integration_id, endpoints=endpoints)


async def test_endpoints_changed_by_hand_get_neither_refresh_token_nor_client_secret(
    place: Installation, evil: ScriptedProvider
):
    connection = await place.connect(STRICT)
    good = (await place.integration_of(connection)).endpoints
    assert good is not None
    await endpoints_at(place, connection, evil)
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.AUTHORITY_BROKEN
    await place.revoke(connection)
    await eventually(lambda: place.records(AuditAction.REVOCATION_FAILED))
    assert evil.calls == []
    await by_hand(place, IntegrationRow, connection.integration_id, endpoints=good.model_dump(mode="json"))
    await place.look_again(connection)
    await place.until(connection, lambda c: c.state is LifecycleState.REVOKED)
    assert evil.calls == []


async def test_a_code_goes_to_no_token_endpoint_that_was_written_into_its_consent(
    place: Installation, evil: ScriptedProvider
):
    connection = await place.begin(await place.integration(STRICT))
    consent = await place.consent(connection, tell=False)
    await by_hand(place, ConsentRow, consent.id, token_endpoint=evil.url("token"))
    with fails(ErrorCode.AUTHORITY_BROKEN, consent.id):
        await Activities(place).exchange(connection, consent)
    assert evil.calls == []
    assert place.idp.count("token") == 0
