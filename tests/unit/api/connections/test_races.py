"""Requests that race, on both databases: PostgreSQL lets transactions run side by side."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.databases import database_url, postgres_server
from tests.fakes.visitor import Visitor

__all__ = ["database_url", "postgres_server"]  # fixtures

NEW = {"integration": "crm", "subject": "user-1"}


@pytest_asyncio.fixture
async def api(tmp_path: Path, database_url: str) -> AsyncIterator[Api]:
    async with running_api(tmp_path, database_url=database_url) as running:
        yield running


async def test_beginnings_make_one_connection(api: Api):
    key = await api.app_for("asker", Action.CONNECT)
    answers = await asyncio.gather(*(api.post("/v1/connections", key, NEW) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_one_idempotency_key_is_one_command(api: Api):
    key = await api.app_for("asker", Action.CONNECT)
    headers = {"Idempotency-Key": "k-1"}
    answers = await asyncio.gather(
        *(api.post("/v1/connections", key, NEW, headers=headers) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    other = await api.post("/v1/connections", key, {**NEW, "subject": "user-2"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    second = await api.app_with("second", Action.CONNECT)  # whose key of the same name is another one
    assert (await api.post("/v1/connections", second, NEW, headers=headers)).status_code == 200


async def test_a_revocation_gets_through_while_tokens_land(api: Api):
    connection, key = await api.active_for("asker", Action.CONNECT, Action.TOKEN)

    async def land() -> None:
        for number in range(20):
            await api.install(connection, f"at-{number}")

    leases = [asyncio.create_task(api.lease(key)) for _ in range(10)]
    revoked, _ = await asyncio.gather(
        api.post(f"/v1/connections/{connection.id}/revoke", key),
        asyncio.gather(land(), return_exceptions=True),
    )
    assert revoked.status_code == 202, revoked.text
    assert {answer.status_code for answer in await asyncio.gather(*leases)} <= {200, 409}
    assert (await api.row(TENANT, connection.id)).state is LifecycleState.REVOKING
    assert (await api.lease(key)).json()["code"] == "connection_revoked"


async def test_a_double_click_starts_one_attempt_that_counts(api: Api):
    key = await api.app_for("asker", Action.CONNECT)
    link = (await api.post("/v1/connections", key, NEW)).json()["connect_url"]
    visitor = Visitor(api)
    await visitor.open(link)
    answers = await asyncio.gather(*(visitor.go_on(link) for _ in range(3)))
    assert all("Taking you to" in answer.text for answer in answers)
    admin = await api.app_with("boss", Action.ADMIN)
    records = (await api.get("/v1/audit", admin)).json()["items"]
    assert [it["action"] for it in records].count(AuditAction.CONSENT_STARTED) == 3
