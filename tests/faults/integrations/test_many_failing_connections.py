"""An integration with thousands of failing connections is repaired by one small request.

The request writes one message; a worker signals the connections, page by page.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest_asyncio
from sqlalchemy import Engine, event

from evergrant_server.core.access import Action
from evergrant_server.core.outbox import OutboxKind
from tests.fakes.api import Api, running_api
from tests.fakes.databases import lent
from tests.fakes.failing_fleet import add_failing_connections

MANY = 7_000  # PostgreSQL has room for some 6,400 locks
BODY = {"provider": "gitlab", "client_id": "client-1", "client_secret": "the-right-one"}
PERMIT = {"integration": "*", "actions": ["token", "connect"]}


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with lent("postgresql", tmp_path) as url, running_api(tmp_path, database_url=url) as running:
        yield running


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """The statements that this process sends to its databases: each row and lock of a request is one."""
    sent: list[str] = []

    def keep(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", keep)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", keep)


async def statements_of(api: Api, path: str, key: str, body: object, method: str = "PUT") -> int:
    """How many statements the request sends. It leaves one message, of the kind that a worker spreads."""
    with counted_statements() as sent:
        answer = await api.call(method, path, key, json=body)
    assert answer.is_success, answer.text
    (message,) = await api.outbox()
    assert message.kind is OutboxKind.RETRY_CONNECTIONS
    return len(sent)


async def test_a_repair_sends_as_many_statements_for_7_000_failing_connections_as_for_one(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    integration = await api.integration()
    await add_failing_connections(api.worker, integration, 1, api.clock.now())
    requests = (
        ("PUT", "/v1/integrations/crm", BODY),
        ("POST", "/v1/integrations/crm/rotate-secret", {"client_secret": "a-newer-one"}),
        ("POST", "/v1/integrations/crm/rotate-secret", {"roll_back": True}),
    )

    async def sent() -> list[int]:
        return [await statements_of(api, path, admin, body, method) for method, path, body in requests]

    await sent()  # the first request of a process makes a key
    few = await sent()
    await add_failing_connections(api.worker, integration, MANY, api.clock.now())
    assert await sent() == few


async def test_so_does_a_change_of_an_app_whose_7_000_exchanges_fail(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    await api.app_with("bridge", Action.TOKEN)
    integration = await api.integration()
    source_app = (await api.app_named("bridge")).id

    async def sent_for(number: int) -> list[int]:
        """By a permit, and by the end of a time in which the app was disabled."""
        await add_failing_connections(api.worker, integration, number, api.clock.now(), source_app=source_app)
        permitted = await statements_of(api, "/v1/apps/bridge/permits/more", admin, PERMIT)
        await api.call("PUT", "/v1/apps/bridge", admin, json={"disabled": True})
        return [permitted, await statements_of(api, "/v1/apps/bridge", admin, {"disabled": False})]

    await api.call("PUT", "/v1/apps/bridge/permits/more", admin, json=PERMIT)
    assert await sent_for(1) == await sent_for(MANY)
