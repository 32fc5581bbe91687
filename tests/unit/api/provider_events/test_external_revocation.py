"""Revoked elsewhere, as an app sees it: no lease from the commit on, and a link that repairs it."""

import pytest

from evergrant_server.audit.external_revocation import apply_external_event
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.provider_events.external_revocation import (
    Certainty,
    ProviderReport,
    ReportDecision,
    ReportSource,
)
from tests.fakes.api import Api

PROVIDER = RequestContext(by="provider:gitlab")


async def heard(api: Api, connection: Connection) -> ReportDecision:
    told = ProviderReport(source=ReportSource.HOOK, kind="uninstalled", certainty=Certainty.ENDED)
    async with api.store.write() as tx:
        current = await tx.connections.get(connection.tenant, connection.id)
        assert current is not None
        return await apply_external_event(tx, current, told, PROVIDER, api.clock.now())


async def test_no_lease_leaves_though_the_token_is_cached_and_valid(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN, Action.CONNECT)
    for _ in range(2):
        assert (await api.lease(key)).status_code == 200
    assert await heard(api, connection) is ReportDecision.ENDED
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (409, "consent_required")
    assert answer.json()["reason"] == "grant_revoked_elsewhere"
    assert answer.json()["connect_url"]
    assert answer.json()["connection_id"] == connection.id
    shown = (await api.get(f"/v1/connections/{connection.id}", key)).json()
    assert (shown["state"], shown["reason"], shown["repairer"]) == (
        "needs_reauth",
        "grant_revoked_elsewhere",
        "subject",
    )


async def test_its_workflow_is_told_and_the_log_says_who_told_us(api: Api):
    connection = await api.active(await api.integration())
    assert await heard(api, connection) is ReportDecision.ENDED
    assert await heard(api, connection) is ReportDecision.NOTHING_HELD, "a report twice is one revocation"
    (record,) = await api.records(of=connection.id)
    assert record.action is AuditAction.REVOKED_AT_PROVIDER
    assert (record.detail["source"], record.detail["kind"]) == ("hook", "uninstalled")
    assert record.detail["reason"] == ErrorCode.GRANT_REVOKED_ELSEWHERE
    assert len(await api.outbox()) == 1


@pytest.mark.parametrize("reason", [ErrorCode.GRANT_REJECTED, ErrorCode.OUTCOME_UNKNOWN])
async def test_a_token_that_was_still_served_is_served_no_more(api: Api, reason: ErrorCode):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    await api.change(connection, lambda it: it.rejected(reason, api.clock.now()))
    assert (await api.lease(key)).status_code == 200
    await heard(api, connection)
    assert (await api.lease(key)).json()["code"] == "consent_required"
