"""Failing, recovered, expiring: said once each, in the store's words, on real parts."""

from datetime import timedelta

import pytest

from activities.consents.consent_end import ExpiryActivities
from evergrant_server.audit.exchanges import records_of_failures
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.activities import AnnounceExpiry
from evergrant_server.core.messages.connection import EnsureFreshResult
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.single_use.recurring_errors import UNDECIDED
from evergrant_server.store.connections.failures import causes_of
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import NEVER_ROTATES, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error, ok, status
from tests.faults.support.activities import call_for

FAILING, RECOVERED = AuditAction.CONNECTION_FAILING, AuditAction.CONNECTION_RECOVERED


async def look_again(place: Installation, connection: Connection) -> EnsureFreshResult:
    """Signal a changed integration, then ask for a fresh token."""
    await place.look_again(connection)
    return await place.ensure_fresh(connection, 1)


async def test_failing_and_recovery_are_recorded_once(place: Installation, lenient: ScriptedProvider):
    connection = await place.connect(NEVER_ROTATES)
    lenient.script(*[error("invalid_client", 401)] * 5)
    for tries in range(1, 6):
        assert (await look_again(place, connection)).problem is ErrorCode.CLIENT_REJECTED
        assert (await place.row(connection)).failures == tries
    row = await place.row(connection)
    assert (row.state, row.last_failure) == (LifecycleState.ACTIVE, ErrorCode.CLIENT_REJECTED)
    assert row.failing_since is not None
    told = await place.audited(connection, FAILING)
    assert [it.detail["failures"] for it in told] == [3], "once, with the third"
    assert told[0].detail["repairer"] == "integration_admin"
    described = await place.described(connection)
    assert (described.reason, described.repairer) == (ErrorCode.CLIENT_REJECTED, "integration_admin")
    assert (await look_again(place, connection)).generation == 2
    well = await place.row(connection)
    assert (well.failures, well.last_failure, well.failing_since) == (0, None, None)
    actions = await place.actions(connection)
    assert (actions.count(FAILING), actions.count(RECOVERED)) == (1, 1)


async def test_one_failure_is_not_recorded(place: Installation, lenient: ScriptedProvider):
    connection = await place.connect(NEVER_ROTATES)
    lenient.script(status(503))
    await place.ensure_fresh(connection, 1)
    await place.until(connection, lambda c: c.generation == 2)
    assert not {FAILING, RECOVERED} & set(await place.actions(connection))


async def test_a_consent_that_repairs_is_a_recovery(place: Installation):
    connection = await place.connect()
    place.idp.script(error("invalid_grant"))
    await place.ensure_fresh(connection, 1)
    await place.consent(connection)
    again = await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    assert (again.id, again.generation) == (connection.id, 2)
    recovered = await place.audited(connection, RECOVERED)
    assert [it.detail["reason"] for it in recovered] == [ErrorCode.GRANT_REJECTED]


async def test_a_new_run_announces_no_expiry_twice(place: Installation):
    """The run was terminated, and the one that follows has announced nothing yet. Another grant ends anew."""
    connection = await place.begin(refresh_policy="warm")
    place.idp.script(*[ok(refresh_token=None, expires_in=86_400 + seconds) for seconds in (2, 7202)])
    await place.consent(connection)
    await place.until_audited(connection, AuditAction.CONNECTION_EXPIRING)
    first = await ends_announced(place, connection)
    await place.terminate(connection)
    assert (await place.parts.reconciler.reconcile_all()).started == 1
    await until_announcing(place, connection)
    assert await ends_announced(place, connection) == first
    await place.consent(connection)
    await place.until(connection, lambda row: row.generation == 2)
    _, grant = await place.grant(connection)
    assert grant.expires_at is not None
    order = AnnounceExpiry(**call_for(connection), days=3, ends_at=grant.expires_at)
    activities = ExpiryActivities(place.store, place.parts.clock)
    for days in (3, 3, 14, 1, 1):
        await activities.announce_expiry(order.model_copy(update={"days": days}))
    assert [days for days, _ in await ends_announced(place, connection)] == [1, 3, 1]
    silence = order.__replace__(ends_at=grant.obtained_at + timedelta(days=30))
    for since in (None, grant.obtained_at - timedelta(days=1), grant.obtained_at, grant.obtained_at):
        await activities.announce_expiry(silence.__replace__(silent_since=since))  # of this grant, once
    assert (await ends_announced(place, connection))[3:] == [(3, silence.ends_at.isoformat())]


async def ends_announced(place: Installation, connection: Connection) -> list[tuple[int, str]]:
    found = await place.audited(connection, AuditAction.CONNECTION_EXPIRING)
    return [(it.detail["days"], it.detail["ends_at"]) for it in found]


async def until_announcing(place: Installation, connection: Connection) -> None:
    """Wait until the newest run has had its announcement carried out."""
    name, done = connection_workflow_id(TENANT, connection.id), "activityTaskCompletedEventAttributes"
    await eventually(lambda: place.parts.link.history(name), lambda it: any(done in event for event in it))


@pytest.mark.parametrize(
    ("name", "state", "undecided"),
    [
        ("no_such_name", LifecycleState.ACTIVE, True),
        ("invalid_client", LifecycleState.ACTIVE, False),
        ("invalid_grant", LifecycleState.NEEDS_REAUTH, False),
    ],
)
async def test_a_failures_record_is_found_by_its_connections_moment(
    place: Installation, lenient: ScriptedProvider, name: str, state: LifecycleState, undecided: bool
):
    """An integration's health has the provider's words so, without a search for each connection."""
    connection = await place.connect(NEVER_ROTATES)
    lenient.script(error(name, 400))
    assert (await place.ensure_fresh(connection, 1)).problem is not None
    async with place.store.read() as tx:
        counted = await causes_of(tx.connection, TENANT, connection.integration_id)
        (cause,) = [each for each in (*counted.failing, *counted.states) if each.code is not None]
        records = await records_of_failures(
            tx, TENANT, {each.connection_id: each.failed_at for each in cause.examples}
        )
    assert (cause.state, cause.connections) == (state, 1)
    detail = records[connection.id].detail
    assert detail["provider_said"]["error"] == name
    assert (UNDECIDED in detail) is undecided
