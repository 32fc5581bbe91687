"""A grant is found dead while its access token is valid by its date: the provider is asked about it, once."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import AfterGrantOver, Endpoints, RefreshRules, Rotation
from evergrant_server.store import LeaseRows
from tests.fakes.platform.skipped_time import TENANT, LoneWorker, lone_worker
from tests.fakes.providers.scripted_server import Call, ScriptedServer

DEAD = (400, {}, {"error": "invalid_grant"})
INVALID = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


class DeadServer(ScriptedServer):
    """Its refresh tokens are dead; what it says of an access token is told to it."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.says: Any = (200, {}, {})

    def _act(self, call: Call) -> Any:
        return DEAD if call.endpoint == "token" else self.says


@pytest_asyncio.fixture
async def server() -> AsyncIterator[DeadServer]:
    async with DeadServer() as server:
        yield server


@pytest_asyncio.fixture
async def place(server: DeadServer, tmp_path: Path) -> AsyncIterator[LoneWorker]:
    async with lone_worker(tmp_path, server.allowance) as place:
        yield place


async def found_dead(
    place: LoneWorker,
    server: DeadServer,
    asks: str | None,
    scopes: tuple[str, ...] = ("read",),
    **changes: Any,
) -> Connection:
    """A connection whose refresh is refused, at a provider with this endpoint."""
    endpoints = Endpoints(
        issuer=server.issuer,
        token_endpoint=server.url("token"),
        introspection_endpoint=server.url(asks) if asks == "introspection" else None,
        userinfo_endpoint=server.url(asks) if asks == "userinfo" else None,
    )
    integration = await place.integration(
        refresh=RefreshRules(rotation=Rotation.STRICT), endpoints=endpoints, issuer=server.issuer, **changes
    )
    connection = await place.connected(integration, scopes=scopes)
    assert (await place.refresh(connection)).failure is ErrorCode.GRANT_REJECTED
    row = await place.row(connection)
    assert row.state is LifecycleState.NEEDS_REAUTH
    return row


async def is_leased(place: LoneWorker, connection: Connection) -> bool:
    row = await LeaseRows(place.store).load(TENANT, connection.id)
    assert row is not None
    assert row.grant_over
    return row.leasable


async def source_of(place: LoneWorker, connection: Connection) -> object:
    async with place.store.read() as tx:
        record = await audit.newest_record(tx, TENANT, connection.id, AuditAction.TOKEN_REPORTED)
    return None if record is None else record.detail["source"]


@pytest.mark.parametrize(
    ("asks", "says", "scopes", "ends"),
    [
        ("introspection", (200, {}, {"active": False}), ("read",), True),
        ("introspection", (200, {}, {"active": True}), ("read",), False),
        ("introspection", (500, {}, {}), ("read",), False),
        ("introspection", (401, {}, {"error": "invalid_client"}), ("read",), False),
        ("userinfo", (401, {}, {}), ("openid", "read"), True),
        ("userinfo", (401, INVALID, {}), ("read",), True),
        ("userinfo", (401, {}, {}), ("read",), False),  # so some answer for a missing scope
        ("userinfo", (403, {}, {}), ("openid",), False),
        ("userinfo", (200, {}, {"sub": "ann"}), ("openid",), False),
        ("userinfo", (503, {}, {}), ("openid",), False),
        (None, (401, INVALID, {}), ("openid",), False),
    ],
)
async def test_what_the_provider_says_of_the_access_token_decides(
    place: LoneWorker, server: DeadServer, asks: str | None, says: Any, scopes: tuple[str, ...], ends: bool
):
    server.says = says
    connection = await found_dead(place, server, asks, scopes)
    assert await is_leased(place, connection) is not ends
    assert await source_of(place, connection) == (asks if ends else None)
    assert len(server.calls) == 1 + (asks is not None)
    if asks == "userinfo":
        (call,) = (call for call in server.calls if call.endpoint == "userinfo")
        assert (call.method, call.headers["authorization"]) == ("GET", "Bearer at-1")


async def test_a_policy_refuses_it_without_a_question(place: LoneWorker, server: DeadServer):
    server.says = (200, {}, {"active": True})
    connection = await found_dead(place, server, "introspection", after_grant_over=AfterGrantOver.REFUSE)
    assert not await is_leased(place, connection)
    assert await source_of(place, connection) == "policy"
    assert server.count("introspection") == 0


async def test_an_expired_token_isnt_asked_about(place: LoneWorker, server: DeadServer):
    endpoints = Endpoints(
        issuer=server.issuer,
        token_endpoint=server.url("token"),
        introspection_endpoint=server.url("introspection"),
    )
    integration = await place.integration(endpoints=endpoints, issuer=server.issuer)
    connection = await place.connected(integration)
    place.clock.advance(timedelta(hours=2).total_seconds())
    assert (await place.refresh(connection)).failure is ErrorCode.GRANT_REJECTED
    assert await source_of(place, connection) is None
    assert server.count("introspection") == 0
