"""Reports of a refused token, and what an admin's repair sets off."""

import asyncio
import time
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult, RefreshReason
from tests.fakes.api import NOW, Api
from tests.fakes.failing_fleet import told_to_try_again
from tests.unit.api.leases.test_leases import asked_once

REPORT = {"generation": 1, "reason": "unauthorized"}


async def test_many_reports_of_one_generation_are_one_refresh(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN)
    gate = asyncio.Event()
    api.refreshes_with("at-2", after=gate)
    at = f"/v1/connections/{connection.id}/refresh"
    reports = [asyncio.create_task(api.post(at, key, REPORT)) for _ in range(20)]
    await asked_once(api)
    gate.set()
    assert {(await it).json()["generation"] for it in reports} == {2}
    assert (await api.post(at, key, REPORT)).json()["generation"] == 2, "an older one is answered at once"
    assert len(api.link.asked) == 1


@pytest.mark.parametrize("declined", [True, False])
async def test_a_report_that_helps_nobody_is_answered_and_not_asked_again(api: Api, declined: bool):
    """The provider says 401 for want of a permission: the workflow declines, or finds nothing newer."""
    connection, key = await api.active_for("reader", Action.TOKEN)
    wishes: list[RefreshReason] = []

    async def decline(tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
        wishes.append(ask.refresh_reason)
        return EnsureFreshResult(generation=1, retry_after=300, declined=declined)

    api.link.on_refresh = decline
    at = f"/v1/connections/{connection.id}/refresh"
    for _ in range(20):
        answer = await api.post(at, key, REPORT)
        assert (answer.status_code, answer.json()["generation"]) == (200, 1)
    assert wishes == [RefreshReason.UNAUTHORIZED]
    api.clock.advance(-7200)  # which changes nothing
    await api.post(at, key, REPORT)
    assert len(wishes) == 1
    api.app.state.refresher.elapsed = lambda: time.monotonic() + 301
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
    api.refreshes_fail(ErrorCode.CONSENT_REQUIRED)
    answer = await api.post(f"/v1/connections/{connection.id}/refresh", key, body)
    assert (answer.status_code, answer.json()["code"]) == (409, "consent_required")
    assert len(api.link.asked) == 1


async def test_a_report_while_refreshes_fail_hears_why_each_time(api: Api):
    """An answer of 200 would say: the token is as new as it gets."""
    connection, key = await api.active_for("reader", Action.TOKEN)
    api.refreshes_fail(ErrorCode.PROVIDER_UNREACHABLE, retry_after=40)
    at = f"/v1/connections/{connection.id}/refresh"
    for _ in range(5):
        answer = await api.post(at, key, REPORT)
        assert (answer.status_code, answer.json()["code"]) == (503, "provider_unreachable")
        assert 1 <= int(answer.headers["retry-after"]) <= 41
    assert len(api.link.asked) == 1
    assert (await api.lease(key)).json()["access_token"] == "at-1", "nothing confirms the report"


@pytest.mark.parametrize("body", [REPORT, {}])
async def test_a_grant_that_ends_while_the_workflow_is_asked_is_no_success(api: Api, body: dict[str, Any]):
    connection, key = await api.active_for("reader", Action.CONNECT, Action.TOKEN)

    async def condemn(tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
        async with api.worker.write() as tx:
            current = await tx.connections.get(tenant, connection_id)
            assert current is not None
            condemned = current.rejected(ErrorCode.GRANT_REJECTED, NOW)
            await tx.connections.replace(condemned, expected=current.revision)
        await asyncio.Event().wait()  # the store is seen first
        raise AssertionError

    api.link.on_refresh = condemn
    answer = await api.post(f"/v1/connections/{connection.id}/refresh", key, body)
    assert (answer.status_code, answer.json()["code"]) == (409, "grant_rejected"), answer.text


async def test_what_a_refresh_is_asked_for_is_strict(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN)
    at = f"/v1/connections/{connection.id}/refresh"
    numbers = ({"generation": 10**30}, {"seen_generation": 10**30}, {"generation": -1}, {"generation": "x"})
    for body in (*numbers, {"reason": "because"}, {"token": "t"}):
        answer = await api.post(at, key, body)
        assert (answer.status_code, answer.json()["field"]) == (400, *body)


async def test_a_repair_reaches_every_connection_that_fails_and_no_other(api: Api):
    integration = await api.integration()
    failing = await api.active(integration, subject="a")
    await api.active(integration, subject="b")
    revoking = await api.active(integration, subject="c")
    await api.change(revoking, lambda it: it.revocation_requested("left", NOW))
    minted = await api.connection(integration, subject="d", flow=Flow.CLIENT_CREDENTIALS)

    def failed(it: Connection) -> Connection:
        return it.refresh_failed(ErrorCode.CLIENT_REJECTED, NOW, token_over=True)

    await api.change(failing, failed)
    key = await api.app_with("admin", Action.ADMIN, Action.TOKEN)
    shown = (await api.get(f"/v1/connections/{failing.id}", key)).json()
    assert (shown["last_failure"], shown["repairer"]) == ("client_rejected", "integration_admin")
    assert (shown["failures"], shown["state"]) == (1, "active")
    assert shown["failing_since"]
    body = {"provider": integration.provider, "client_id": integration.client_id, "client_secret": "new"}
    answer = await api.call("PUT", f"/v1/integrations/{integration.name}", key, json=body)
    assert answer.status_code == 200, answer.text
    assert await told_to_try_again(api) == sorted([failing.id, revoking.id, minted.id])


async def refused_everywhere(api: Api, connection: Connection, key: str) -> None:
    """Both ways to a lease say that the subject must consent, and where."""
    for answer in (await api.lease(key), await api.post(f"/v1/connections/{connection.id}/token", key)):
        assert (answer.status_code, answer.json().get("code")) == (409, "consent_required"), answer.text
        assert answer.json()["connect_url"].startswith("http")


@pytest.mark.parametrize("reason", [ErrorCode.GRANT_REJECTED, ErrorCode.OUTCOME_UNKNOWN])
async def test_a_token_that_was_reported_and_can_t_be_refreshed_is_leased_no_more(
    api: Api, reason: ErrorCode
):
    connection, key = await api.active_for("reader", Action.TOKEN, Action.CONNECT)
    at = f"/v1/connections/{connection.id}"
    other = Api(api.parts, api.worker, api.clock)  # another process: it has rows of its own in memory
    for one in (api, other):
        assert (await one.lease(key)).status_code == (await one.post(f"{at}/token", key)).status_code == 200
    api.refreshes_are_refused(reason)
    answer = await api.post(f"{at}/refresh", key, REPORT)
    assert (answer.status_code, answer.json()["code"]) == (409, reason)
    await refused_everywhere(api, connection, key)
    await refused_everywhere(other, connection, key)
    await api.install(connection, "at-2")
    for one in (api, other):
        assert (await one.lease(key)).json()["access_token"] == "at-2", "a new consent lifts it"
    await other.client.aclose()


async def test_a_report_that_comes_after_the_refresh_was_refused_counts_as_well(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN, Action.CONNECT)
    await api.change(connection, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    assert (await api.lease(key)).json()["access_token"] == "at-1", "nobody has reported it"
    answer = await api.post(f"/v1/connections/{connection.id}/refresh", key, REPORT)
    assert (answer.status_code, answer.json()["code"]) == (409, "grant_rejected")
    await refused_everywhere(api, connection, key)


async def test_a_report_of_an_older_token_or_a_request_for_a_newer_one_says_nothing_of_this_one(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN, Action.CONNECT)
    await api.install(connection, "at-2")
    at = f"/v1/connections/{connection.id}/refresh"
    assert (await api.post(at, key, REPORT)).json()["generation"] == 2
    api.refreshes_are_refused(ErrorCode.GRANT_REJECTED)
    assert (await api.post(at, key, {"generation": 2})).status_code == 409
    assert (await api.post(at, key, REPORT)).status_code == 409
    assert (await api.lease(key)).json()["access_token"] == "at-2"


async def test_many_reports_are_written_once_and_audited(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN, Action.CONNECT)
    api.refreshes_are_refused(ErrorCode.GRANT_REJECTED)
    at = f"/v1/connections/{connection.id}/refresh"
    answers = await asyncio.gather(*(api.post(at, key, REPORT) for _ in range(10)))
    assert {it.status_code for it in answers} == {409}
    (said,) = await api.records(AuditAction.TOKEN_REPORTED, of=connection.id)
    assert said.detail == {"generation": 1}
    assert (await api.row(connection.tenant, connection.id)).revision == connection.revision + 2
