"""Failing, recovered, expiring: said once each, in the store's words, on real parts."""

import asyncio
from datetime import timedelta

from activities.consents.consent_end import ExpiryActivities
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.activities import AnnounceExpiry
from evergrant_server.core.messages.base import Provenance, SignalName, connection_workflow_id
from evergrant_server.core.messages.connection import EnsureFreshResult, ProviderChanged
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error, ok, status

NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)
FAILING, RECOVERED = AuditAction.CONNECTION_FAILING, AuditAction.CONNECTION_RECOVERED


async def look_again(place: Installation, connection: Connection) -> EnsureFreshResult:
    """Signal a changed integration, then ask for a fresh token."""
    workflow = place.parts.client.get_workflow_handle(connection_workflow_id(TENANT, connection.id))
    await workflow.signal(SignalName.PROVIDER_CHANGED, ProviderChanged(version=2, context=ASKED))
    return await place.ensure_fresh(connection, 1)


async def test_failing_and_recovery_are_recorded_once(place: Installation, lenient: ScriptedProvider):
    connection = await place.connect(lenient, NEVER_ROTATES)
    lenient.script(*[error("invalid_client", 401)] * 5)
    for tries in range(1, 6):
        assert (await look_again(place, connection)).problem is ErrorCode.CLIENT_REJECTED
        assert (await place.row(connection)).failures == tries
    row = await place.row(connection)
    assert (row.state, row.last_failure) == (LifecycleState.ACTIVE, ErrorCode.CLIENT_REJECTED)
    assert row.failing_since is not None
    told = [it for it in await place.audited(connection) if it.action is FAILING]
    assert [it.detail["failures"] for it in told] == [3], "once, with the third"
    assert told[0].detail["repairer"] == "integration_admin"
    described = await place.parts.link.describe(TENANT, connection.id)
    assert (described.reason, described.repairer) == (ErrorCode.CLIENT_REJECTED, "integration_admin")
    assert (await look_again(place, connection)).generation == 2
    well = await place.row(connection)
    assert (well.failures, well.last_failure, well.failing_since) == (0, None, None)
    actions = await place.actions(connection)
    assert (actions.count(FAILING), actions.count(RECOVERED)) == (1, 1)


async def test_one_failure_is_not_recorded(place: Installation, lenient: ScriptedProvider):
    connection = await place.connect(lenient, NEVER_ROTATES)
    lenient.script(status(503))
    await place.ensure_fresh(connection, 1)
    await place.until(connection, lambda c: c.generation == 2)
    assert not {FAILING, RECOVERED} & set(await place.actions(connection))


async def test_a_consent_that_repairs_is_a_recovery(place: Installation, idp: ScriptedProvider):
    connection = await place.connect(idp)
    idp.script(error("invalid_grant"))
    await place.ensure_fresh(connection, 1)
    integration = await place.integration_of(connection)
    await place.consent(idp, integration, connection)
    again = await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    assert (again.id, again.generation) == (connection.id, 2)
    recovered = [it for it in await place.audited(connection) if it.action is RECOVERED]
    assert [it.detail["reason"] for it in recovered] == [ErrorCode.GRANT_REJECTED]


async def test_an_approaching_expiry_is_recorded(place: Installation, idp: ScriptedProvider):
    """A token that lasts a day and two seconds, and no refresh token."""
    integration = await place.integration(idp)
    connection = await place.begin(integration, "warm")
    idp.script(ok(refresh_token=None, expires_in=86_400 + 2))
    await place.consent(idp, integration, connection)
    await place.until_audited(connection, AuditAction.CONNECTION_EXPIRING)
    (record,) = [it for it in await place.audited(connection) if it.action is AuditAction.CONNECTION_EXPIRING]
    assert record.detail["days"] == 1
    assert (await place.row(connection)).state is LifecycleState.ACTIVE


async def test_a_new_run_announces_no_expiry_twice(place: Installation, idp: ScriptedProvider):
    """The run was terminated, and the one that follows has announced nothing yet. Another grant ends anew."""
    integration = await place.integration(idp)
    connection = await place.begin(integration, "warm")
    idp.script(*[ok(refresh_token=None, expires_in=86_400 + seconds) for seconds in (2, 7202)])
    await place.consent(idp, integration, connection)
    await place.until_audited(connection, AuditAction.CONNECTION_EXPIRING)
    first = await ends_announced(place, connection)
    await place.terminate(connection)
    assert (await place.parts.reconciler.reconcile_all()).started == 1
    await until_announcing(place, connection)
    assert await ends_announced(place, connection) == first
    await place.consent(idp, integration, connection)
    await place.until(connection, lambda row: row.generation == 2)
    _, grant = await place.grant(connection)
    assert grant.expires_at is not None
    order = AnnounceExpiry(
        tenant=TENANT, connection_id=connection.id, context=ASKED, days=3, ends_at=grant.expires_at,
        provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
    )  # fmt: skip
    activities = ExpiryActivities(place.store, place.parts.clock)
    for days in (3, 3, 14, 1, 1):
        await activities.announce_expiry(order.model_copy(update={"days": days}))
    assert [days for days, _ in await ends_announced(place, connection)] == [1, 3, 1]


async def ends_announced(place: Installation, connection: Connection) -> list[tuple[int, str]]:
    found = [it for it in await place.audited(connection) if it.action is AuditAction.CONNECTION_EXPIRING]
    return [(it.detail["days"], it.detail["ends_at"]) for it in found]


async def until_announcing(place: Installation, connection: Connection) -> None:
    """Wait until the newest run has had its announcement carried out."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            history = await place.parts.link.history(connection_workflow_id(TENANT, connection.id))
            if any("activityTaskCompletedEventAttributes" in event for event in history):
                return
            await asyncio.sleep(0.05)


async def test_a_grant_from_the_future_is_due(place: Installation, lenient: ScriptedProvider):
    """Our clock was an hour ahead when it came, and has been set right."""
    connection = await place.connect(lenient, NEVER_ROTATES)
    _, grant = await place.grant(connection)
    now = place.parts.clock.now()
    assert not grant.is_due(now, timedelta(minutes=5))
    assert grant.is_due(now - timedelta(hours=1), timedelta(minutes=5))
    assert grant.is_valid(now - timedelta(hours=1)), "and served meanwhile"
