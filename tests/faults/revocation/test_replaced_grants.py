"""A grant that a new one replaces is revoked as far as that ends nothing else, at the latest with its
connection."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.cli.doctor import CheckFailed, database
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import OnReconnect
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.consent import ConsentKind
from evergrant_server.core.connections.grant import MAIN_SLOT, ImportedTokens
from evergrant_server.core.connections.replaced import ReplacedGrant
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.names import replaced_grants_workflow_id
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.store.connections.tables import ConnectionGrantRow
from tests.fakes.certificates import LoopbackTls
from tests.fakes.events.transmitter import id_token
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.platform.observations import runs
from tests.fakes.providers.scripted_provider import (
    ScriptedProvider,
    drop_after_commit,
    error,
    ok,
    status,
)
from tests.fakes.rows import token_set
from tests.faults.consent.test_stuck_states import breaks
from tests.faults.support.activities import Activities

REPLACED, REVOKED = AuditAction.GRANT_REPLACED, AuditAction.REPLACED_GRANT_REVOKED


@pytest.fixture
def provider(tls: LoopbackTls) -> ScriptedProvider:
    return ScriptedProvider(tls=tls)


async def reaching(place: Installation, reach: str) -> Integration:
    """An integration at a provider whose revocation reaches so far."""
    revocation = {"revocation_endpoint": place.idp.url("revoke"), "revocation": {"reach": reach}}
    return await place.integration_with(place.document(**revocation), on_reconnect=OnReconnect.ANY)


async def consented(place: Installation, connection: Connection, account: str | None = None) -> Connection:
    """Its subject consents, with this account if the provider names one."""
    if account is not None:
        claims = {"iss": place.idp.issuer, "aud": place.idp.client_id}
        place.idp.script(ok(id_token=id_token(account, **claims)), at="token")
    before = await place.row(connection)
    await place.consent(connection)
    return await place.until(connection, lambda it: it.generation > before.generation)


async def connected(
    place: Installation, integration: Integration, *accounts: str | None, subject: str = "user-1"
) -> Connection:
    """A connection with one consent after the other."""
    connection = await place.begin(integration, subject=subject)
    for account in accounts:
        connection = await consented(place, connection, account)
    return connection


async def kept(place: Installation, connection: Connection) -> list[ReplacedGrant]:
    async with place.store.read() as tx:
        return await tx.replaced_grants.of_connection(TENANT, connection.id)


async def details(place: Installation, connection: Connection, action: AuditAction) -> list[dict[str, Any]]:
    return [record.detail for record in await place.audited(connection, action)]


def alive(place: Installation) -> list[bool]:
    """Whether the grant of each consent is alive at the provider, in their order."""
    return [family.alive for family in place.idp.families]


def revocations(place: Installation) -> int:
    return place.idp.count("revoke")


async def test_a_revocation_ends_the_grants_that_were_replaced_too(place: Installation):
    connection = await connected(place, await place.integration(), None, None)
    (replaced,) = await details(place, connection, REPLACED)
    assert replaced == {"generation": 1, "same_account": None, "reach": "unknown", "old_revoked": False}
    assert (alive(place), revocations(place)) == ([True, True], 0)
    ended = await place.revoked(connection)
    assert (ended.revocation, alive(place)) == (RevocationOutcome.CONFIRMED, [False, False])
    assert await details(place, connection, REVOKED) == [{"generation": 1, "how": "confirmed"}]
    assert await kept(place, connection) == []


async def test_where_a_token_ends_its_own_grant_alone_the_old_one_is_revoked_at_once(place: Installation):
    place.idp.script(*[status(503, {"Retry-After": "1"})] * 2, at="revoke")
    connection = await connected(place, await reaching(place, "token"), None, None)
    await place.until_audited(connection, REVOKED)
    assert alive(place) == [False, True]
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    failed = await details(place, connection, AuditAction.REVOCATION_FAILED)
    said = {"provider_said": {"status": 503}}
    assert failed == [{"reason": ErrorCode.PROVIDER_ERROR, "replaced": True, **said}] * 2
    assert await kept(place, connection) == []


async def test_a_replaced_grant_whose_successor_was_lost_isnt_said_to_be_revoked(place: Installation):
    """Its refresh token is spent, and the one that the provider has made in its place nobody holds."""
    connection = await connected(place, await reaching(place, "token"), None)
    place.idp.script(drop_after_commit())
    await Activities(place).refresh(connection, 1)
    async with place.store.write() as tx:
        attempt = await tx.attempts.open_of_any_kind(TENANT, connection.id, MAIN_SLOT)
        assert attempt is not None
        await tx.attempts.close(attempt, AttemptOutcome.SUPERSEDED, place.parts.clock.now())
    await consented(place, connection, None)
    await place.until_audited(connection, REVOKED)
    assert await details(place, connection, REVOKED) == [{"generation": 1, "how": "unknown"}]


@pytest.mark.parametrize("reach", ["grant", "unknown"])
async def test_where_every_grant_of_the_account_ends_none_of_the_same_account_is_revoked(
    place: Installation, reach: str
):
    connection = await connected(place, await reaching(place, reach), "account-1", "account-1")
    (replaced,) = await details(place, connection, REPLACED)
    assert (replaced["same_account"], replaced["old_revoked"]) == (True, False)
    assert (alive(place), revocations(place)) == ([True, True], 0)


async def test_another_accounts_grant_is_revoked_unless_a_live_connection_has_that_account(
    place: Installation,
):
    integration = await reaching(place, "grant")
    alone = await connected(place, integration, "account-1", "account-2")
    await place.until_audited(alone, REVOKED)
    assert alive(place) == [False, True]
    await connected(place, integration, "account-3", subject="user-3")
    shares = await connected(place, integration, "account-3", "account-4", subject="user-4")
    (replaced,) = await details(place, shares, REPLACED)
    assert (replaced["same_account"], replaced["old_revoked"]) == (False, False)
    await place.revoked(shares)
    assert alive(place) == [False, True, True, True, False]
    assert (await details(place, shares, REPLACED))[-1] == {
        "generation": 1,
        "old_revoked": False,
        "reason": "in_use",
    }


async def test_an_account_that_came_back_before_its_grant_was_revoked_keeps_it(place: Installation):
    place.idp.script(status(503, {"Retry-After": "3600"}), at="revoke")
    connection = await connected(place, await reaching(place, "grant"), "account-1", "account-2")
    await place.until_audited(connection, AuditAction.REVOCATION_FAILED)
    await consented(place, connection, "account-1")
    await place.until_audited(connection, REVOKED)
    assert alive(place) == [True, False, True]
    assert {"generation": 1, "old_revoked": False, "reason": "in_use"} in await details(
        place, connection, REPLACED
    )


async def test_an_import_may_be_of_the_same_grant_and_revokes_nothing_by_itself(place: Installation):
    connection = await connected(place, await reaching(place, "token"), None)
    consent = await place.unasked(connection, ConsentKind.IMPORT)
    tokens = ImportedTokens(access_token=Secret("at"), refresh_token=Secret("rt"), expires_at=None)
    async with place.store.write() as tx:
        await tx.consents.replace(consent, expected=consent.revision, tokens=tokens)
    await place.tell_consent(connection, consent)
    await place.until(connection, lambda it: it.generation == 2)
    assert [it["old_revoked"] for it in await details(place, connection, REPLACED)] == [False]
    assert revocations(place) == 0


async def test_late_tokens_that_a_new_consent_supersedes_are_revoked_with_the_connection(place: Installation):
    """They were never verified, and may be valid all the same."""
    connection = await connected(place, await reaching(place, "token"), None)
    row = await place.row(connection)
    reply = place.idp.grant()
    further = {"user": token_set(place.idp.grant())}
    async with place.store.write() as tx:
        rejected = row.rejected(ErrorCode.OUTCOME_UNKNOWN, place.parts.clock.now())
        await tx.connections.replace(rejected, expected=row.revision)
    await place.keep_late(connection, token_set(reply, further=further), from_generation=1)
    await consented(place, connection)
    await place.until_audited(connection, REVOKED)
    assert alive(place) == [False, True, True, True]
    await place.revoked(connection)
    assert alive(place) == [False] * 4


async def test_a_refresh_token_that_is_issued_again_is_not_revoked(place: Installation):
    connection = await connected(place, await reaching(place, "token"), None)
    same = place.idp.families[0].refresh_token
    place.idp.script(ok(refresh_token=same), at="token")
    await consented(place, connection)
    assert await kept(place, connection) == []
    assert await details(place, connection, REPLACED) == []


async def test_the_grant_in_use_is_revoked_while_the_replaced_one_waits(place: Installation):
    connection = await connected(place, await place.integration(), None, None)
    place.idp.script(status(503, {"Retry-After": "1"}), at="revoke")
    await place.revoked(connection)
    old, *rest = [call.params["token"] for call in place.idp.calls if call.endpoint == "revoke"]
    assert old in rest, "what wasn't confirmed is sent again"
    assert alive(place) == [False, False]
    assert rest[0] == place.idp.families[1].refresh_token


async def test_a_token_that_the_provider_no_longer_knows_keeps_no_connection_revoking(place: Installation):
    """RFC 7009 section 2.2 wants 200 for it."""
    place.idp.script(status(404), at="revoke")
    connection = await connected(place, await reaching(place, "token"), None, None)
    await eventually(lambda: kept(place, connection), lambda it: not it[0].pending)
    place.idp.script(error("invalid_grant"), at="revoke")
    assert (await place.revoked(connection)).revocation is RevocationOutcome.CONFIRMED
    reasons = [it.get("reason") for it in await details(place, connection, REPLACED)]
    assert reasons == [None, ErrorCode.REPLY_UNREADABLE, "refused"]
    assert alive(place) == [True, False]


async def test_a_grant_that_cant_be_opened_is_replaced_by_a_new_consent(place: Installation):
    connection = await connected(place, await reaching(place, "token"), None)
    async with place.store.write() as tx:
        await breaks(tx, ConnectionGrantRow, "sealed_refresh", connection_id=connection.id)
    await consented(place, connection)
    (replaced,) = await details(place, connection, REPLACED)
    assert replaced == {"generation": 1, "old_revoked": False, "reason": ErrorCode.SEAL_BROKEN}
    await place.revoked(connection)


async def test_a_terminated_workflow_is_named_by_doctor_and_started_again_by_the_recurring_pass(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    place.idp.script(status(503, {"Retry-After": "3600"}), at="revoke")
    connection = await connected(place, await reaching(place, "token"), None, None)
    await place.until_audited(connection, AuditAction.REVOCATION_FAILED)
    monkeypatch.setattr(database, "REVOCATION_AGE_LIMIT", timedelta(0))
    with pytest.raises(CheckFailed, match=rf"a replaced grant of {connection.id} .* provider_error"):
        await database.revocations(place.parts.settings)
    workflow = replaced_grants_workflow_id(TENANT, connection.id)
    await place.parts.reconciler.reconcile_all()
    assert revocations(place) == 1, "one that runs is not woken"
    await place.parts.client.get_workflow_handle(workflow).terminate("by hand")
    await place.parts.reconciler.reconcile_all()
    await place.until_audited(connection, REVOKED)
    await eventually(lambda: runs(place.parts.link, workflow), lambda it: not it)
    assert alive(place) == [False, True]
