"""Grants that end at their provider while we hold them: asked for, told, and told at a bad moment.

Store (SQLite and PostgreSQL), worker and Temporal are real; the provider does what the script says.
"""

from datetime import timedelta

import pytest
from temporalio.testing import ActivityEnvironment

from activities.provider_events import IntrospectionActivities, ReceiverKeysActivities
from activities.support.provider_context import ProviderContextLoader
from activities.workloads import TrustedIssuerActivities
from evergrant_server.audit.provider_reports import apply_provider_report
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ReceiverId, new_id
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import IntrospectGrants, IntrospectGrantsResult
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.provider_events import (
    Certainty,
    IntrospectionFinding,
    ProviderReport,
    Receiver,
    ReceiverKind,
    ReportDecision,
    ReportSource,
)
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.store.database.rows import find_one
from evergrant_server.store.provider_events import IntrospectionRow
from providers.requests.sender import Sender
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import html, ok, raw, status

PROVIDER = RequestContext(by="provider:generic")


async def introspected(place: Installation) -> Connection:
    """A connection whose provider introspects, and that is asked about at the next pass."""
    connection = await place.connect(STRICT)
    endpoints = (await place.integration_of(connection)).endpoints
    assert endpoints is not None
    introspects = endpoints.model_copy(update={"introspection_endpoint": place.idp.url("introspect")})
    await place.change_integration(connection, endpoints=introspects)
    await due(place, connection)
    return connection


async def due(place: Installation, connection: Connection) -> None:
    async with place.store.write() as tx:
        known = await find_one(tx.connection, IntrospectionRow, tenant=TENANT, connection_id=connection.id)
        now = place.parts.clock.now()
        await tx.introspections.schedule(
            TENANT, connection.id, now, outcome=known["outcome"] if known else "never"
        )


async def one_pass(place: Installation) -> IntrospectGrantsResult:
    """What the schedule starts."""
    return await place.parts.client.execute_workflow(
        jobs.INTROSPECT_GRANTS.name,
        IntrospectGrants(),
        id=f"look-elsewhere-{place.parts.settings.temporal_task_queue}",
        task_queue=place.parts.settings.temporal_task_queue,
        result_type=IntrospectGrantsResult,
    )


async def outcome(place: Installation, connection: Connection) -> str | None:
    async with place.store.read() as tx:
        row = await find_one(tx.connection, IntrospectionRow, tenant=TENANT, connection_id=connection.id)
    return None if row is None else row["outcome"]


async def test_introspection_notices_an_ended_grant_before_a_lease(place: Installation):
    connection = await introspected(place)
    assert await one_pass(place) == IntrospectGrantsResult(checked=1)
    assert await outcome(place, connection) == IntrospectionFinding.REFRESH_TOKEN_ACTIVE
    place.idp.families[-1].alive = False  # its subject has taken it back
    await due(place, connection)
    assert await one_pass(place) == IntrospectGrantsResult(checked=1, ended=1)
    row = await place.row(connection)
    assert (row.state, row.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REVOKED_ELSEWHERE)
    await place.until_described(connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH)
    assert place.idp.refreshes == 0
    assert (await one_pass(place)).checked == 0, "its turn is over"


async def test_a_token_with_an_unreadable_successor_says_nothing_about_the_grant(place: Installation):
    """It is spent, and what was made of it waits for a definition that can read it."""
    connection = await introspected(place)
    await one_pass(place)
    place.idp.script(ok(token_type="of another kind"))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REPLY_UNREADABLE
    place.idp.script(raw(b'{"active": false}', 200), at="introspect")
    await due(place, connection)
    assert (await one_pass(place)).ended == 0
    assert (await place.row(connection)).state is LifecycleState.ACTIVE


async def test_rfc7662_2_2_inactive_refresh_tokens_are_not_believed_while_the_access_token_is_active(
    place: Installation,
):
    """It says `active: false` of every refresh token; the access token is asked about instead."""
    connection = await introspected(place)
    place.idp.script(raw(b'{"active": false}', 200), at="introspect")
    await one_pass(place)
    assert await outcome(place, connection) == IntrospectionFinding.ACCESS_TOKEN_ACTIVE
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    assert place.idp.refreshes == 0


async def test_a_subject_token_is_not_introspected(place: Installation):
    """It lies where refresh tokens do, and is none of this provider's: a no says nothing of the grant."""
    connection = await introspected(place)
    await one_pass(place)
    assert await outcome(place, connection) == IntrospectionFinding.REFRESH_TOKEN_ACTIVE, (
        "of others a no would count"
    )
    row, grant = await place.grant(await place.change(connection, flow=Flow.TOKEN_EXCHANGE))
    async with place.store.write() as tx:
        access = await tx.grants.access_token(row)
        tokens = TokenSet(access_token=access, refresh_token=Secret("another-issuer-s"))
        await tx.grants.install(row, tokens, grant, origin=Origin.NEW, expected=row.revision)
    await due(place, connection)
    assert (await one_pass(place)).ended == 0
    assert await outcome(place, connection) == IntrospectionFinding.ACCESS_TOKEN_ACTIVE
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    assert place.idp.count("introspect", token="another-issuer-s") == 0


async def test_static_credentials_are_not_introspected(place: Installation):
    connection = await introspected(place)
    begun = await place.begin(await place.integration_of(connection), subject="user-2")
    begun = await place.change(begun, flow=Flow.API_KEY)
    _, grant = await place.grant(connection)
    async with place.store.write() as tx:
        after = begun.granted(place.parts.clock.now())
        await tx.grants.install(
            after, TokenSet(access_token=Secret("a-key")), grant, origin=Origin.NEW, expected=begun.revision
        )
    await due(place, begun)
    await one_pass(place)
    assert await outcome(place, begun) == IntrospectionFinding.NOTHING_LEARNT
    assert place.idp.count("introspect", token="a-key") == 0


async def test_an_inactive_access_token_causes_one_refresh(place: Installation):
    connection = await introspected(place)
    dead = raw(b'{"active": false}', 200)
    place.idp.script(dead, dead, at="introspect")
    assert (await one_pass(place)).refresh_requested == 1
    refreshed = await place.until(connection, lambda it: it.generation == 2)
    assert refreshed.state is LifecycleState.ACTIVE
    assert AuditAction.PROVIDER_REPORT_RECEIVED in await place.actions(connection)


@pytest.mark.parametrize("answer", [status(500), html(), raw(b'{"active": "false"}', 200)])
async def test_rfc7662_2_2_an_error_ends_no_grant(place: Installation, answer):
    connection = await introspected(place)
    await one_pass(place)
    place.idp.script(answer, at="introspect")
    await due(place, connection)
    assert (await one_pass(place)).failed == 1
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    assert await place.actions(connection) == [AuditAction.GRANT_INSTALLED]


async def test_transmitters_keys_are_read_however_long_a_provider_takes_to_answer(place: Installation):
    connection = await introspected(place)
    now = place.parts.clock.now()
    receiver = Receiver(
        tenant=TENANT,
        id=ReceiverId(new_id("rcv")),
        integration_id=connection.integration_id,
        kind=ReceiverKind.SET,
        issuer="https://transmitter.example/",
        jwks_uri=place.idp.url("keys"),
        created_at=now,
        changed_at=now,
    )
    async with place.store.write() as tx:
        await tx.receivers.put(receiver, None, expected=None)
    async with place.idp.in_flight(one_pass(place), at="introspect"), place.store.read() as tx:
        found = await tx.receivers.find_in_any_tenant(receiver.id)
    assert found is not None
    assert found.keys_at is not None


async def test_a_pass_starts_with_what_the_last_one_left(place: Installation):
    """As when each answer takes all the time that an integration has in a pass."""
    first = await introspected(place)
    integration = await place.integration_of(first)
    second = await place.begin(integration, subject="user-2")
    await place.consent(second)
    await place.until(second, lambda it: it.state is LifecycleState.ACTIVE)
    await due(place, second)
    activities = looking_elsewhere(place, longest_turn=timedelta(0))
    for _ in range(2):
        assert (
            await ActivityEnvironment().run(activities.introspect_grants, IntrospectGrants())
        ).checked == 1
    both = [await outcome(place, first), await outcome(place, second)]
    assert both == [IntrospectionFinding.REFRESH_TOKEN_ACTIVE] * 2


def looking_elsewhere(place: Installation, *, longest_turn: timedelta) -> IntrospectionActivities:
    parts, settings = place.parts, place.parts.settings
    egress = Egress(EgressPolicy(allow=settings.egress_allow))
    announced = settings.expiry_announce_days
    return IntrospectionActivities(
        parts.store,
        ProviderContextLoader(parts.store, parts.registry, settings.public_url, parts.clock, announced),
        Sender(egress),
        ReceiverKeysActivities(parts.store, egress, parts.clock),
        TrustedIssuerActivities(parts.store, egress, parts.clock),
        parts.clock,
        settings.introspection_interval,
        longest_turn,
    )


async def told(
    place: Installation,
    connection: Connection,
    certainty: Certainty = Certainty.ENDED,
    source: ReportSource = ReportSource.SECURITY_EVENT,
    times: int = 1,
) -> set[ReportDecision]:
    """The provider reports it, so often at once. What came of it."""
    news = ProviderReport(source=source, kind="tokens-revoked", certainty=certainty)
    async with place.store.write() as tx:
        row = await tx.connections.get(TENANT, connection.id)
        assert row is not None
        now = place.parts.clock.now()
        decided = {await apply_provider_report(tx, row, news, PROVIDER, now) for _ in range(times)}
    place.parts.relay.notify()
    return decided


async def test_tokens_of_a_refresh_that_overlapped_a_report_are_verified_first(place: Installation):
    """Its reply may be older than the report. Its token is tried, and the grant stays active."""
    connection = await place.connect(STRICT)
    async with place.idp.in_flight(place.ensure_fresh(connection, 1)):
        assert await told(place, connection) == {ReportDecision.ENDED}
        assert (await place.row(connection)).state is LifecycleState.NEEDS_REAUTH
    alive = await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)
    assert alive.generation == 2
    assert alive.reason is None
    assert AuditAction.LATE_TOKENS_RECEIVED in await place.actions(connection)
    await place.until_described(connection, lambda it: it.state is LifecycleState.ACTIVE)


async def test_a_refresh_of_an_ended_grant_installs_nothing(place: Installation):
    connection = await place.connect(STRICT)
    async with place.idp.in_flight(place.ensure_fresh(connection, 1)):
        await told(place, connection)
        place.idp.families[-1].alive = False
    await place.idp.until("token", 3)
    await place.until_described(connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH)
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.NEEDS_REAUTH, 1)


async def test_a_suspicion_is_settled_by_a_refresh(place: Installation):
    connection = await place.connect(STRICT)
    place.idp.families[-1].alive = False
    decided = await told(place, connection, Certainty.SUSPECTED, ReportSource.HOOK)
    assert decided == {ReportDecision.REFRESH_REQUESTED}
    ended = await place.until(connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH)
    assert ended.reason is ErrorCode.GRANT_REJECTED


async def test_ten_suspicions_cost_one_refresh(place: Installation):
    connection = await place.connect(STRICT)
    decided = await told(place, connection, Certainty.SUSPECTED, times=10)
    assert decided == {ReportDecision.REFRESH_REQUESTED}
    name = connection_workflow_id(TENANT, connection.id)
    await eventually(lambda: waits(place, name), lambda it: not it)
    await eventually(lambda: place.parts.link.is_idle(name))
    assert (await place.row(connection)).generation == 2
    assert place.idp.count("token", grant_type="refresh_token") == 1


async def waits(place: Installation, name: str) -> bool:
    async with place.store.read() as tx:
        return bool(await tx.outbox.targets_with_undelivered([name]))
