"""States out of which nothing led: each test is one, and shows what leads out of it now."""

import json
from datetime import timedelta

from sqlalchemy import update

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import Sealed
from evergrant_server.store import Transaction
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConsentRow
from evergrant_server.store.database.columns import Row
from evergrant_server.store.database.rows import columns_equal, find_one
from evergrant_server.store.integrations.tables import IntegrationRow
from tests.fakes.failures import fails
from tests.fakes.platform.installation import ASKED, STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import drop_after_commit, raw
from tests.faults.support.activities import Activities

OVER = timedelta(seconds=-61)  # the deadline's grace of a minute has ended when the workflow begins


def altered(sealed: Sealed) -> Sealed:
    return Sealed(sealed[:-1] + bytes([sealed[-1] ^ 1]))


async def breaks(tx: Transaction, table: type[Row], column: str, **equal: str) -> None:
    """Alter what is sealed in one row."""
    row = await find_one(tx.connection, table, tenant=TENANT, **equal)
    assert row is not None
    mine = columns_equal(table, tenant=TENANT, **equal)
    changed = update(table).where(mine).values({column: altered(row[column])})
    await tx.connection.execute(changed)


async def brought(place: Installation, connection: Connection) -> Consent:
    """An import whose tokens wait for a worker."""
    now = place.parts.clock.now()
    consent = Consent.without_subject(
        connection, ConsentKind.IMPORT, ("read",), ASKED, at=now, expires_at=now + timedelta(days=7)
    )
    async with place.store.write() as tx:
        await tx.consents.add(consent, None, ImportedTokens(access_token=Secret("at-1"), expires_at=None))
    return consent


async def renamed(place: Installation, connection: Connection, provider: str) -> None:
    """Its integration's provider is called so, whatever the catalogue has."""
    await place.change_integration(connection, provider=provider)


async def test_a_reconnect_supersedes_a_refresh_whose_answer_was_lost(place: Installation):
    connection = await place.connect(STRICT)
    place.idp.script(drop_after_commit())
    await place.ensure_fresh(connection, 1)
    assert await place.open_attempts(connection) == 1
    await place.consent(connection)
    again = await place.until(connection, lambda c: c.generation == 2)
    assert again.state is LifecycleState.ACTIVE
    assert await place.open_attempts(connection) == 0


async def test_a_refusal_with_status_200_does_not_block_the_reconnect(place: Installation):
    """GitHub answers so."""
    connection = await place.connect(STRICT)
    place.idp.script(raw(json.dumps({"error": "invalid_grant"}).encode(), 200))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.GRANT_REJECTED
    assert await place.open_attempts(connection) == 0
    await place.consent(connection)
    assert (await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)).generation == 2


async def test_a_revocation_at_the_consent_deadline_is_carried_out(place: Installation):
    """The store says revoking before the workflow hears of it, and its time has come."""
    connection = await place.begin(deadline=OVER, start=False)
    await place.revoke(connection, tell=False)
    await place.start(connection)
    over = await place.until(connection, lambda c: c.state.is_final)
    assert (over.state, over.revocation) == (LifecycleState.REVOKED, RevocationOutcome.NOTHING_HELD)
    await place.workflow(connection).result()


async def test_a_code_received_before_the_deadline_is_exchanged_after_it(place: Installation):
    """Its message was not relayed in time, but the subject has consented."""
    connection = await place.begin(deadline=OVER, start=False)
    await place.consent(connection, tell=False)
    await place.start(connection)
    granted = await place.until(connection, lambda c: c.state is not LifecycleState.PENDING_CONSENT)
    assert (granted.state, granted.generation) == (LifecycleState.ACTIVE, 1)
    assert (await place.ensure_fresh(connection, 1)).generation == 2


async def test_a_live_row_gets_a_workflow_after_its_last_one_ended(place: Installation):
    """A store restored from a backup, say: what it says is live must be revocable."""
    connection = await place.begin(deadline=OVER, start=False)
    before = await place.row(connection)
    await place.start(connection)
    over = await place.until(connection, lambda c: c.state.is_final)
    assert over.state is LifecycleState.CONSENT_EXPIRED
    await place.workflow(connection).result()
    async with place.store.write() as tx:
        await tx.connections.replace(before, expected=over.revision)
    await place.revoked(connection)


async def test_reconcile_resumes_a_waiting_code(place: Installation):
    connection = await place.begin()
    await place.until_started(connection)
    await place.consent(connection, tell=False)
    await place.terminate(connection)
    await place.parts.reconciler.reconcile_all()  # unless the worker's own has started it already
    assert (await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)).generation == 1


async def test_a_broken_seal_does_not_block_a_new_consent(place: Installation):
    connection = await place.connect()
    async with place.store.write() as tx:
        await breaks(tx, ConnectionGrantRow, "sealed_refresh", connection_id=connection.id)
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.SEAL_BROKEN
    await place.consent(connection)
    assert (await place.until(connection, lambda c: c.generation == 2)).state is LifecycleState.ACTIVE


async def test_a_provider_that_left_the_catalogue_ends_no_workflow(place: Installation):
    connection = await place.connect()
    await renamed(place, connection, "was-renamed")
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.CLIENT_REJECTED
    await place.revoke(connection)
    await place.until_audited(connection, AuditAction.REVOCATION_FAILED)
    await renamed(place, connection, "generic")
    await place.look_again(connection)
    assert (await place.until(connection, lambda c: c.state is LifecycleState.REVOKED)).revocation


async def test_a_code_that_cannot_be_exchanged_ends_its_consent(place: Installation):
    integration = await place.integration()
    connection = await place.begin(integration)
    consent = await place.consent(connection, tell=False)
    await renamed(place, connection, "was-renamed")
    await place.tell_consent(connection, consent)
    await place.until_audited(connection, AuditAction.CONSENT_FAILED)
    failed = await place.consent_of(consent)
    assert (failed.status, failed.failure) == (ConsentStatus.FAILED, ErrorCode.CLIENT_REJECTED)


async def test_a_code_with_a_broken_seal_does_not_block_the_next_consent(place: Installation):
    connection = await place.begin()
    consent = await place.consent(connection, tell=False)
    async with place.store.write() as tx:
        await breaks(tx, ConsentRow, "sealed_code", id=consent.id)
    await place.tell_consent(connection, consent)
    await place.until_audited(connection, AuditAction.CONSENT_FAILED)
    assert (await place.consent_of(consent)).failure is not None
    await place.consent(connection)
    assert (await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)).generation == 1


async def test_imported_tokens_with_a_broken_seal_do_not_block_a_revocation(place: Installation):
    connection = await place.begin()
    consent = await brought(place, connection)
    async with place.store.write() as tx:
        await breaks(tx, ConsentRow, "sealed_tokens", id=consent.id)
    await place.tell_consent(connection, consent)
    await place.until_audited(connection, AuditAction.CONSENT_FAILED)
    assert (await place.consent_of(consent)).failure == ErrorCode.SEAL_BROKEN
    await place.revoked(connection)


async def test_an_import_survives_a_broken_client_secret(place: Installation):
    """Its tokens may be the only copies, and an admin puts the secret again."""
    integration = await place.integration()
    connection = await place.begin(integration)
    consent = await brought(place, connection)
    async with place.store.write() as tx:
        await breaks(tx, IntegrationRow, "sealed_client_secret", id=integration.id)
    here = Activities(place)
    with fails(ErrorCode.SEAL_BROKEN):
        await here.exchange(connection, consent)
    assert (await place.consent_of(consent)).status is ConsentStatus.CODE_RECEIVED
    current = await place.integration_now(integration.id)
    async with place.store.write() as tx:
        await tx.integrations.put(current, Secret(place.idp.client_secret), expected=current.revision)
    assert (await here.exchange(connection, consent)).generation == 1


async def test_a_code_is_not_spent_for_a_connection_that_is_being_revoked(place: Installation):
    connection = await place.begin()
    await place.revoke(connection, tell=False)
    consent = await place.consent(connection)
    await place.tell_revoke(connection)
    over = await place.until(connection, lambda c: c.state is LifecycleState.REVOKED)
    assert (over.generation, over.revocation) == (0, RevocationOutcome.NOTHING_HELD)
    assert place.idp.count("token") == 0
    assert (await place.consent_of(consent)).failure == ErrorCode.CONNECTION_REVOKED
