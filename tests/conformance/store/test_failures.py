"""Failures of an integration by cause: the same on every backend."""

from datetime import timedelta

from evergrant_server.audit.exchanges import records_of_failures
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.store import Store
from evergrant_server.store.connections.failures import EXAMPLES, Causes, causes_of
from tests.conformance.store.samples import ACME, a_connection, added
from tests.fakes.databases import NOW

MINUTE = timedelta(minutes=1)


async def active(store: Store, number: int) -> Connection:
    """The `number`th connection, which its subject has consented to."""
    pending = await added(store, a_connection(subject=f"user-{number}"))
    async with store.write() as tx:
        return await tx.connections.replace(pending.granted(NOW), expected=pending.revision)


async def failing(store: Store, number: int, code: ErrorCode) -> Connection:
    connection = await active(store, number)
    failed = connection.refresh_failed(code, NOW + number * MINUTE, token_over=True)
    async with store.write() as tx:
        return await tx.connections.replace(failed, expected=connection.revision)


async def causes(store: Store, tenant: Tenant, connection: Connection, most_read: int = 100) -> Causes:
    async with store.read() as tx:
        return await causes_of(tx.connection, tenant, connection.integration_id, most_read)


async def test_causes_are_counted_with_their_newest_connections(store: Store):
    many = [await failing(store, number, ErrorCode.PROVIDER_ERROR) for number in range(1, EXAMPLES + 4)]
    one = await failing(store, 30, ErrorCode.CLIENT_REJECTED)
    well = await active(store, 31)
    async with store.write() as tx:
        gone = await tx.connections.replace(
            well.rejected(ErrorCode.GRANT_REJECTED, NOW + MINUTE), expected=well.revision
        )
    counted = await causes(store, ACME, one)
    by_code = {cause.code: cause for cause in counted.failing}
    frequent, rare = by_code[ErrorCode.PROVIDER_ERROR], by_code[ErrorCode.CLIENT_REJECTED]
    assert (frequent.connections, frequent.since) == (len(many), NOW + MINUTE)
    newest = [example.connection_id for example in frequent.examples]
    assert newest == [connection.id for connection in reversed(many)][:EXAMPLES]
    assert (rare.connections, rare.since) == (1, NOW + 30 * MINUTE)
    assert rare.examples == ((one.id, rare.since, Flow.AUTHORIZATION_CODE),)
    assert counted.count(LifecycleState.ACTIVE) == len(many) + 1
    (ended,) = [cause for cause in counted.states if cause.state is LifecycleState.NEEDS_REAUTH]
    assert (ended.code, ended.since, ended.examples[0].connection_id) == (
        ErrorCode.GRANT_REJECTED,
        NOW + MINUTE,
        gone.id,
    )
    assert counted.complete
    assert (await causes(store, Tenant("other"), one)) == Causes((), (), True)
    elsewhere = one.__replace__(integration_id=IntegrationId("int_elsewhere"))
    assert (await causes(store, ACME, elsewhere)) == Causes((), (), True)


async def test_failing_ones_are_counted_whole_however_many_are_live(store: Store):
    rows = [await failing(store, number, ErrorCode.PROVIDER_ERROR) for number in range(1, 5)]
    counted = await causes(store, ACME, rows[0], most_read=2)
    assert not counted.complete
    assert [cause.connections for cause in counted.failing] == [4]
    assert counted.count(LifecycleState.ACTIVE) == 3


async def test_words_are_looked_for_at_the_moments_of_the_failures_alone(store: Store):
    row = await failing(store, 1, ErrorCode.PROVIDER_ERROR)
    async with store.read() as tx:
        assert await records_of_failures(tx, ACME, {}) == {}
        assert await records_of_failures(tx, ACME, {row.id: NOW}) == {}
