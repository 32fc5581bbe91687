"""Reports of a refused token, and what an admin's repair sets off."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Code
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages import SIGNAL_PROVIDER_CHANGED, EnsureFresh, Freshness, Wish
from tests.fakes.api import NOW, Api

REPORT = {"generation": 1, "reason": "unauthorized"}


async def test_many_reports_of_one_generation_are_one_refresh(api: Api):
    connection = await api.active(await api.integration())
    key = await api.app_with("reader", Action.TOKEN)
    gate = asyncio.Event()
    api.refreshes_with("at-2", after=gate)
    at = f"/v1/connections/{connection.id}/refresh"
    reports = [asyncio.create_task(api.post(at, key, REPORT)) for _ in range(20)]
    async with asyncio.timeout(20):
        while not api.link.asked:
            await asyncio.sleep(0.01)
    gate.set()
    assert {(await it).json()["generation"] for it in reports} == {2}
    assert (await api.post(at, key, REPORT)).json()["generation"] == 2, "an older one is answered at once"
    assert len(api.link.asked) == 1


async def test_a_report_that_helps_nobody_is_answered_and_not_asked_again(api: Api):
    """The provider says 401 for want of a permission: the workflow declines, for a while."""
    connection = await api.active(await api.integration())
    key = await api.app_with("reader", Action.TOKEN)
    wishes: list[Wish] = []

    async def decline(tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh) -> Freshness:
        wishes.append(ask.wish)
        return Freshness(generation=1, retry_after=300, declined=True)

    api.link.on_refresh = decline
    at = f"/v1/connections/{connection.id}/refresh"
    for _ in range(50):
        answer = await api.post(at, key, REPORT)
        assert (answer.status_code, answer.json()["generation"]) == (200, 1)
    assert wishes == [Wish.UNAUTHORIZED]
    api.clock.advance(-7200)  # which changes nothing
    await api.post(at, key, REPORT)
    assert len(wishes) == 1
    freshening = api.parts.freshening
    freshening.elapsed = lambda: time.monotonic() + 301
    await api.post(at, key, REPORT)
    assert len(wishes) == 2
    assert (await api.lease(key)).status_code == 200, "and the token, which is valid, is served"


@pytest.mark.parametrize("body", [REPORT, {"generation": 1}, {}])
@pytest.mark.parametrize("lifetime", [None, 3600.0])
async def test_a_grant_that_nothing_refreshes_is_as_new_as_it_gets(
    api: Api, lifetime: float | None, body: dict[str, Any]
):
    connection = await api.active(await api.integration(), lifetime=lifetime, refreshable=False)
    key = await api.app_with("reader", Action.TOKEN)
    answer = await api.post(f"/v1/connections/{connection.id}/refresh", key, body)
    assert (answer.status_code, answer.json()["generation"]) == (200, 1), answer.text
    assert api.link.asked == [], "the workflow could do nothing"


@pytest.mark.parametrize("body", [REPORT, {}])
async def test_once_it_is_over_the_workflow_says_what_is_to_be_done(api: Api, body: dict[str, Any]):
    connection = await api.active(await api.integration(), refreshable=False)
    key = await api.app_with("reader", Action.TOKEN)
    api.clock.advance(3601)
    api.refreshes_fail(Code.CONSENT_REQUIRED)
    answer = await api.post(f"/v1/connections/{connection.id}/refresh", key, body)
    assert (answer.status_code, answer.json()["code"]) == (409, "consent_required")
    assert len(api.link.asked) == 1


async def test_a_report_that_a_refresh_answered_with_nothing_newer_is_answered(api: Api):
    """The provider gave a refresh token, and its definition says that it refreshes nothing."""
    connection = await api.active(await api.integration())
    key = await api.app_with("reader", Action.TOKEN)
    asked: list[Wish] = []

    async def nothing(tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh) -> Freshness:
        asked.append(ask.wish)
        return Freshness(generation=1, retry_after=300)

    api.link.on_refresh = nothing
    for _ in range(5):
        answer = await api.post(f"/v1/connections/{connection.id}/refresh", key, REPORT)
        assert (answer.status_code, answer.json()["generation"]) == (200, 1), answer.text
    assert asked == [Wish.UNAUTHORIZED]


async def test_a_report_while_refreshes_fail_hears_why_each_time(api: Api):
    """An answer of 200 would say: the token is as new as it gets."""
    connection = await api.active(await api.integration())
    key = await api.app_with("reader", Action.TOKEN)
    asked: list[Wish] = []

    async def fail(tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh) -> Freshness:
        asked.append(ask.wish)
        return Freshness(generation=1, problem=Code.PROVIDER_UNREACHABLE, retry_after=40)

    api.link.on_refresh = fail
    at = f"/v1/connections/{connection.id}/refresh"
    for _ in range(5):
        answer = await api.post(at, key, REPORT)
        assert (answer.status_code, answer.json()["code"]) == (503, "provider_unreachable")
        assert 1 <= int(answer.headers["retry-after"]) <= 41
    assert len(asked) == 1


async def test_what_a_refresh_is_asked_for_is_strict(api: Api):
    connection = await api.active(await api.integration())
    key = await api.app_with("reader", Action.TOKEN)
    at = f"/v1/connections/{connection.id}/refresh"
    for body in ({"reason": "because"}, {"generation": -1}, {"generation": "x"}, {"token": "t"}):
        assert (await api.post(at, key, body)).status_code == 400


async def test_a_repair_reaches_every_connection_that_fails_and_no_other(api: Api):
    integration = await api.integration()
    failing = await api.active(integration, subject="a")
    await api.active(integration, subject="b")
    revoking = await api.active(integration, subject="c")
    await api.change(revoking, lambda it: it.revoke_asked("left", NOW))
    minted = await api.connection(integration, subject="d", flow=Flow.CLIENT_CREDENTIALS)

    def failed(it: Connection) -> Connection:
        return it.refresh_failed(Code.CLIENT_REJECTED, NOW, token_over=True)

    await api.change(failing, failed)
    key = await api.app_with("admin", Action.ADMIN, Action.TOKEN)
    shown = (await api.get(f"/v1/connections/{failing.id}", key)).json()
    assert (shown["last_failure"], shown["repairer"]) == ("client_rejected", "integration_admin")
    assert (shown["failures"], shown["state"]) == (1, "active")
    assert shown["failing_since"]
    body = {"provider": integration.provider, "client_id": integration.client_id, "client_secret": "new"}
    if integration.issuer:
        body["issuer"] = integration.issuer
    answer = await api.call("PUT", f"/v1/integrations/{integration.name}", key, json=body)
    assert answer.status_code == 200, answer.text
    async with api.worker.write() as tx:
        waiting = await tx.outbox.claim("test", api.clock.now(), timedelta(minutes=1), 100)
    told = [it for it in waiting if it.name == SIGNAL_PROVIDER_CHANGED]
    assert {it.target.rsplit(":", 1)[-1] for it in told} == {failing.id, revoking.id, minted.id}
