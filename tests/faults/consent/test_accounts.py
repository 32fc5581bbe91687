"""Whose account a consent was given with: pinned at first, compared at the next, never exchanged unseen."""

import json
from typing import Any

import pytest
from sqlalchemy import delete, update

from activities.single_use.journal_replay import JournaledReply
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import PIN, Account, OnReconnect
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.activities import ExchangeCode
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptKind
from evergrant_server.store.connections.account_identifiers import AccountIdentifierRow
from evergrant_server.store.database.rows import columns_equal
from providers.responses.raw_reply import RawReply
from tests.fakes.events.transmitter import id_token
from tests.fakes.failures import fails
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import ok
from tests.faults.support.activities import Activities, at_temporal, call_for

ANN, BOB = "ann-1", "bob-2"
MAKER, OTHER_APP = "app_maker", "app_other"


def names(place: Installation, sub: str, **claims: Any) -> str:
    """An id token of the provider's, as it comes with its tokens."""
    about = {"iss": place.idp.issuer, "aud": place.idp.client_id, "email": f"{sub}@example.org"}
    return id_token(sub, **{**about, "email_verified": True, **claims})


async def consent_as(place: Installation, connection: Connection, sub: str | None, **claims: Any) -> Consent:
    """The browser's provider is signed in to this account."""
    place.idp.script(ok(**({"id_token": names(place, sub, **claims)} if sub else {})))
    return await place.consent(connection)


async def connected_as(
    place: Installation, connection: Connection, sub: str, generation: int = 1
) -> Connection:
    await consent_as(place, connection, sub)
    return await place.until(connection, lambda row: row.generation == generation)


async def refused(place: Installation, consent: Consent, connection: Connection) -> dict[str, Any]:
    """The consent ended, and why the audit log says so."""
    await place.until_audited(connection, AuditAction.ACCOUNT_MISMATCH)
    (record,) = await place.audited(connection, AuditAction.ACCOUNT_MISMATCH)
    ended = await place.consent_of(consent)
    assert (ended.status, ended.failure) == (ConsentStatus.FAILED, ErrorCode.ACCOUNT_MISMATCH)
    return record.detail


async def came(place: Installation, consent: Consent) -> str | None:
    async with place.store.read() as tx:
        return (await tx.consents.account(await place.consent_of(consent))).came


async def expecting(place: Installation, connection: Connection, **claims: str) -> Connection:
    async with place.store.read() as tx:
        hashed = tx.account_identifiers.hash_claims(TENANT, connection.integration_id, claims)
    return await place.change(connection, expected_account=hashed)


@pytest.mark.parametrize("sub", [BOB, None], ids=["another account", "an unnamed account"])
async def test_attack_6_a_reconnect_with_another_account_changes_nothing(
    place: Installation, sub: str | None
):
    begun = await place.begin()
    first = await consent_as(place, begun, ANN)
    connection = await place.until(begun, lambda row: row.generation == 1)
    assert await came(place, first) == f"{ANN}@example.org", "for the page of her browser"
    token = await place.access_token(connection)
    consent = await consent_as(place, connection, sub)
    detail = await refused(place, consent, connection)
    assert detail["pinned"] is not None
    assert detail["account"] != detail["pinned"]
    assert ANN not in str(detail)
    assert BOB not in str(detail)
    assert await came(place, consent) == (f"{BOB}@example.org" if sub else None)
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 1)
    async with place.api() as http:
        leased = await http.post(f"/v1/connections/{connection.id}/token", json={})
    assert (leased.status_code, leased.json()["access_token"]) == (200, token), leased.text
    if sub is not None:  # an unnamed one may be hers: it is revoked with the connection
        await place.until_audited(connection, AuditAction.REPLACED_GRANT_REVOKED)
    assert [family.alive for family in place.idp.families] == [True, sub is None]
    again = await connected_as(place, connection, ANN, generation=2)
    assert again.state is LifecycleState.ACTIVE, "the honest person is connected"


async def test_a_lost_grant_is_not_repaired_with_another_account(place: Installation):
    connection = await connected_as(place, await place.begin(), ANN)
    await place.change(connection, state=LifecycleState.NEEDS_REAUTH, reason=ErrorCode.GRANT_REJECTED)
    await refused(place, await consent_as(place, connection, BOB), connection)
    row = await place.row(connection)
    assert (row.state, row.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED)


async def test_a_pin_that_was_lifted_by_hand_lets_no_other_account_in(place: Installation):
    """The code isn't spent: a writer to the database gains nothing by it."""
    connection = await connected_as(place, await place.begin(), ANN)
    mine = columns_equal(AccountIdentifierRow, connection_id=connection.id)
    async with place.store.write() as tx:
        await tx.connection.execute(delete(AccountIdentifierRow).where(mine))
    spent = place.idp.count("token")
    consent = await place.consent(connection)
    await place.until_audited(connection, AuditAction.CONSENT_FAILED)
    assert (await place.consent_of(consent)).failure == ErrorCode.AUTHORITY_BROKEN
    assert place.idp.count("token") == spent
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 1)
    async with place.store.read() as tx:
        assert await tx.grants.get(TENANT, connection.id)
    assert (await place.ensure_fresh(connection, 1)).generation == 2, "the grant in use is refreshed"


async def test_a_pin_that_is_moved_while_a_code_is_exchanged_installs_nothing(place: Installation):
    connection = await connected_as(place, await place.begin(), ANN)
    consent, here = await place.consent(connection, tell=False), Activities(place)
    opened = {"token_valid": False, "credential": consent.id}
    use = await here.single_use.open(AttemptKind.CODE_EXCHANGE, connection, STRICT, **opened)
    order = ExchangeCode(**call_for(connection), consent_id=consent.id, generation=1)
    async with place.store.write() as tx:
        bob = tx.account_identifiers.hash_of(connection, Account(id=json.dumps(["x", BOB]), name=BOB))
        mine = columns_equal(AccountIdentifierRow, connection_id=connection.id, name=PIN)
        await tx.connection.execute(update(AccountIdentifierRow).where(mine).values(identifier_hash=bob))
    body = json.dumps({**place.idp.grant(), "id_token": names(place, BOB)}).encode()
    answer = JournaledReply.for_request(order, RawReply(200, {}, body), place.parts.clock.now())
    with fails(ErrorCode.AUTHORITY_BROKEN, connection.id):
        await at_temporal().run(here.replayer._replays[AttemptKind.CODE_EXCHANGE], use, answer)
    assert (await place.row(connection)).generation == 1


@pytest.mark.parametrize(
    ("claims", "revoked"),
    [({"nonce": "another"}, True), ({"iss": "https://another.example"}, False)],
    ids=["of another request", "of another issuer"],
)
async def test_tokens_that_came_with_a_refused_id_token_are_revoked(
    place: Installation, claims: dict[str, str], revoked: bool
):
    """As an unwanted account's: at once where it is another one, else with the connection, in both cases once
    however often the reply is judged. The id token of another request names its account all the same."""
    connection = await connected_as(place, await place.begin(), ANN)
    hashed = {"nonce_hash": hash_of_nonce("ours")}
    consent, here = await place.consent(connection, tell=False, **hashed), Activities(place)
    opened = {"token_valid": False, "credential": consent.id}
    use = await here.single_use.open(AttemptKind.CODE_EXCHANGE, connection, STRICT, **opened)
    order = ExchangeCode(**call_for(connection), consent_id=consent.id, generation=1)
    body = json.dumps({**place.idp.grant(), "id_token": names(place, BOB, **claims)}).encode()
    answer = JournaledReply.for_request(order, RawReply(200, {}, body), place.parts.clock.now())
    for _ in range(2):
        news = await at_temporal().run(here.replayer._replays[AttemptKind.CODE_EXCHANGE], use, answer)
        assert (news.failure, news.consent_over) == (ErrorCode.ID_TOKEN_REFUSED, True)
    (told,) = await place.audited(connection, AuditAction.GRANT_REPLACED)
    assert told.detail["same_account"] is (False if revoked else None)
    if revoked:
        await place.until_audited(connection, AuditAction.REPLACED_GRANT_REVOKED)
    assert [family.alive for family in place.idp.families] == [True, not revoked]
    await place.revoked(connection)
    assert [family.alive for family in place.idp.families] == [False, False]


@pytest.mark.parametrize("audience", ["", []])
async def test_an_id_token_for_no_client_is_the_admins_and_its_tokens_are_revoked(
    place: Installation, audience: object
):
    """A client that was made at the provider without an audience: another consent brings the same token."""
    connection = await place.begin()
    place.idp.script(ok(id_token=names(place, ANN, aud=audience)))
    consent = await place.consent(connection)
    ended = await eventually(lambda: place.consent_of(consent), lambda row: row.failure is not None)
    assert ended.failure == ErrorCode.CLIENT_REJECTED
    row = await place.row(connection)
    assert row.state is LifecycleState.PENDING_CONSENT
    await place.until_audited(connection, AuditAction.REPLACED_GRANT_REVOKED)
    assert not place.idp.families[0].alive


async def test_where_any_account_may_come_the_pin_follows(place: Installation):
    integration = await place.integration(on_reconnect=OnReconnect.ANY)
    connection = await connected_as(place, await place.begin(integration), ANN)
    await connected_as(place, connection, BOB, generation=2)
    await place.change_integration(connection, on_reconnect=OnReconnect.SAME)
    await refused(place, await consent_as(place, connection, ANN), connection)


async def test_an_expected_account_is_the_only_one_that_connects(place: Installation):
    connection = await expecting(place, await place.begin(), email="ANN-1@example.org", hd="example.org")
    await refused(place, await consent_as(place, connection, ANN), connection)
    row = await place.row(connection)
    assert (row.state, row.reason) == (LifecycleState.PENDING_CONSENT, ErrorCode.ACCOUNT_MISMATCH)
    await consent_as(place, connection, ANN, hd="example.org")
    back = await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)
    assert back.reason is None


async def test_one_account_under_two_subjects_leaves_a_trace(place: Installation):
    integration = await place.integration()
    ann = await connected_as(place, await place.begin(integration), ANN)
    await connected_as(place, await place.begin(integration, label="work"), ANN)
    assert await place.records(AuditAction.ACCOUNT_SHARED) == [], "her own second connection is no trace"
    other = await connected_as(place, await place.begin(integration, subject="user-2"), ANN)
    (shared,) = await place.records(AuditAction.ACCOUNT_SHARED)
    assert shared.object == other.id
    assert ann.id in shared.detail["connections"]
    await connected_as(place, other, ANN, generation=2)
    assert len(await place.records(AuditAction.ACCOUNT_SHARED)) == 1, "it was said when it began"


async def test_a_refresh_pins_what_no_reply_named_and_never_moves_a_pin(place: Installation):
    connection = await place.connect()
    place.idp.script(ok(id_token=names(place, ANN)), ok(id_token=names(place, BOB)))
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    async with place.store.read() as tx:
        pin = await tx.account_identifiers.account_hash(connection)
    assert pin is not None
    assert (await place.ensure_fresh(connection, 2)).generation == 3
    async with place.store.read() as tx:
        assert await tx.account_identifiers.account_hash(connection) == pin


async def test_oidc_core_12_2_a_refresh_does_not_believe_an_id_token_of_another_issuer(place: Installation):
    connection = await connected_as(place, await place.begin(), ANN)
    place.idp.script(ok(id_token=names(place, BOB, iss="https://another.example")))
    assert (await place.ensure_fresh(connection, 1)).generation == 2, "its tokens are good"
    row, _ = await place.grant(connection)
    async with place.store.read() as tx:
        kept = await tx.grants.id_token(row)
    assert kept == Secret(names(place, ANN))


async def test_a_reply_that_is_judged_twice_is_refused_twice(place: Installation):
    """Its worker dies between the commit and the end of the journal's entry."""
    connection = await connected_as(place, await place.begin(), ANN)
    consent, here = await place.consent(connection, tell=False), Activities(place)
    opened = {"token_valid": False, "credential": consent.id}
    use = await here.single_use.open(AttemptKind.CODE_EXCHANGE, connection, STRICT, **opened)
    order = ExchangeCode(**call_for(connection), consent_id=consent.id, generation=1)
    body = json.dumps({**place.idp.grant(), "id_token": names(place, BOB)}).encode()
    answer = JournaledReply.for_request(order, RawReply(200, {}, body), place.parts.clock.now())
    for _ in range(2):
        news = await at_temporal().run(here.replayer._replays[AttemptKind.CODE_EXCHANGE], use, answer)
        assert (news.failure, news.consent_over) == (ErrorCode.ACCOUNT_MISMATCH, True)
    assert len(await place.audited(connection, AuditAction.ACCOUNT_MISMATCH)) == 1
    assert await place.late_tokens(connection) == []


@pytest.mark.parametrize("sub", [None, BOB], ids=["without openid", "with openid"])
async def test_a_consent_that_another_app_requested_before_the_first_grant_changes_nothing(
    place: Installation, sub: str | None
):
    """Its link was as good as the first app's until then. Its code, which comes after the grant, isn't
    spent: one that a workflow finds before is as good."""
    begun = await place.begin()
    place.idp.script(ok())
    await place.consent(begun, app_id=MAKER)
    connection = await place.until(begun, lambda row: row.generation == 1)
    theirs = await place.consent(connection, tell=False, app_id=OTHER_APP)
    token, spent = await place.access_token(connection), place.idp.count("token")
    if sub is not None:
        place.idp.script(ok(id_token=names(place, sub)))
    await place.tell_consent(connection, theirs)
    await place.until_audited(connection, AuditAction.CONSENT_FAILED)
    ended = await place.consent_of(theirs)
    assert (ended.status, ended.failure) == (ConsentStatus.FAILED, ErrorCode.MADE_BY_ANOTHER_APP)
    assert place.idp.count("token") == spent
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 1)
    assert await place.access_token(row) == token


@pytest.mark.parametrize(
    "again", [{"app_id": MAKER}, {"app_id": OTHER_APP, "replaces_any": True}], ids=["its app", "an admin"]
)
async def test_a_consent_of_its_own_app_or_an_admin_replaces_the_grant(
    place: Installation, again: dict[str, Any]
):
    begun = await place.begin()
    await place.consent(begun, app_id=MAKER)
    connection = await place.until(begun, lambda row: row.generation == 1)
    await place.consent(connection, **again)
    await place.until(connection, lambda row: row.generation == 2)
