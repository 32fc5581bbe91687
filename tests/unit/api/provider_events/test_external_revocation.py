"""Revoked elsewhere, as an app sees it: no lease from the commit on, and a link that repairs it."""

from datetime import timedelta

import pytest

from evergrant_server import audit
from evergrant_server.audit.external_revocation import apply_external_event
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.provider_events.external_revocation import (
    Certainty,
    ProviderReport,
    ReportDecision,
    ReportSource,
)
from evergrant_server.core.secret import Secret
from tests.fakes.api import TENANT, Api

PROVIDER = RequestContext(by="provider:gitlab")


async def heard(
    api: Api, connection: Connection, weight: Certainty = Certainty.ENDED, **more: object
) -> ReportDecision:
    told = ProviderReport(source=ReportSource.HOOK, kind="uninstalled", certainty=weight, **more)
    async with api.store.write() as tx:
        current = await tx.connections.get(connection.tenant, connection.id)
        assert current is not None
        return await apply_external_event(tx, current, told, PROVIDER, api.clock.now())


async def recorded(api: Api, connection: Connection) -> list[AuditAction]:
    async with api.store.read() as tx:
        return [it.action for it in await audit.page(tx, TENANT, object=connection.id, limit=100)]


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
    await heard(api, connection)
    async with api.store.read() as tx:
        (record,) = await audit.page(tx, TENANT, object=connection.id)
        told = await tx.outbox.depth(api.clock.now())
    assert record.action is AuditAction.REVOKED_AT_PROVIDER
    assert (record.detail["source"], record.detail["kind"]) == ("hook", "uninstalled")
    assert record.detail["reason"] == ErrorCode.GRANT_REVOKED_ELSEWHERE
    assert told == 1


async def test_a_report_twice_is_one_revocation(api: Api):
    connection = await api.active(await api.integration())
    assert await heard(api, connection) is ReportDecision.ENDED
    assert await heard(api, connection) is ReportDecision.NOTHING_HELD
    assert await recorded(api, connection) == [AuditAction.REVOKED_AT_PROVIDER]


async def test_an_older_report_is_recorded_and_changes_nothing(api: Api):
    connection = await api.active(await api.integration())
    before = api.clock.now() - timedelta(seconds=1)
    assert await heard(api, connection, at=before) is ReportDecision.OUTDATED
    assert (await api.row(TENANT, connection.id)).state is LifecycleState.ACTIVE
    assert await recorded(api, connection) == [AuditAction.PROVIDER_REPORT_RECEIVED]


async def test_a_doubt_asks_for_a_refresh_and_the_token_is_served_meanwhile(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    assert await heard(api, connection, Certainty.SUSPECTED) is ReportDecision.REFRESH_REQUESTED
    assert (await api.lease(key)).status_code == 200
    async with api.store.write() as tx:
        (message,) = await tx.outbox.claim("test", api.clock.now(), timedelta(seconds=1), 10)
    assert message.name == "rotate"


@pytest.mark.parametrize("reason", [ErrorCode.GRANT_REJECTED, ErrorCode.OUTCOME_UNKNOWN])
async def test_a_token_that_was_still_served_is_served_no_more(api: Api, reason: ErrorCode):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    await api.change(connection, lambda it: it.rejected(reason, api.clock.now()))
    assert (await api.lease(key)).status_code == 200
    await heard(api, connection)
    assert (await api.lease(key)).json()["code"] == "consent_required"


async def test_a_new_consent_repairs_it(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    await heard(api, connection)
    again = await api.row(TENANT, connection.id)
    async with api.worker.write() as tx:
        grant = await tx.grants.get(TENANT, connection.id)
        assert grant is not None
        after = again.granted(api.clock.now())
        newer = grant.model_copy(update={"generation": after.generation})
        tokens = TokenSet(access_token=Secret("at-new"))
        await tx.grants.install(after, tokens, newer, origin=Origin.NEW, expected=again.revision)
    assert (await api.lease(key)).json()["access_token"] == "at-new"
