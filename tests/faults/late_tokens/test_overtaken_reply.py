"""A reply that comes when its connection has another grant by now, or that nothing can verify: its tokens are
never installed, and don't live on either."""

import json

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.consent import ConsentKind
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.certificates import LoopbackTls
from tests.fakes.events.transmitter import id_token
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, ok, raw
from tests.faults.revocation.test_replaced_grants import (
    REPLACED,
    REVOKED,
    alive,
    connected,
    consented,
    details,
    kept,
    reaching,
)
from tests.faults.support.reply_timing import SHORT, Slow


@pytest.fixture
def provider(tls: LoopbackTls) -> ScriptedProvider:
    return ScriptedProvider(tls=tls)


@pytest.fixture
def limits() -> TimeLimits:
    return SHORT


def revoked_tokens(place: Installation) -> set[str]:
    return {call.params["token"] for call in place.idp.calls if call.endpoint == "revoke"}


async def overtaken(place: Installation, reach: str, *accounts: str | None) -> Connection:
    """Another host refreshes, the subject consents again as the second account, then its answer comes."""
    before, after = accounts
    connection = await connected(place, await reaching(place, reach), before)
    claims = {"iss": place.idp.issuer, "aud": place.idp.client_id}
    slow = Slow(place, **({} if before is None else {"id_token": id_token(before, **claims)}))
    await slow.refreshes(connection)
    connection = await consented(place, connection, after)
    assert (await slow.answered()).generation == connection.generation, "which is the new grant's"
    return connection


async def test_the_tokens_of_an_overtaken_refresh_are_revoked_where_that_ends_their_own_grant_alone(
    place: Installation,
):
    connection = await overtaken(place, "token", None, None)
    newest = place.idp.families[0].refresh_token
    await eventually(lambda: kept(place, connection), lambda it: not it)
    assert newest in revoked_tokens(place), "the token that only the late answer knew"
    assert alive(place) == [False, True]
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 2)
    assert [it["generation"] for it in await details(place, connection, REVOKED)] in ([1, None], [None, 1])


async def test_the_tokens_of_an_overtaken_refresh_wait_where_they_may_end_the_new_grant(place: Installation):
    connection = await overtaken(place, "grant", "account-1", "account-1")
    newest = place.idp.families[0].refresh_token
    assert [it.pending for it in await kept(place, connection)] == [False, False]
    assert (revoked_tokens(place), alive(place)) == (set(), [True, True])
    told = await details(place, connection, REPLACED)
    assert [(it["same_account"], it["old_revoked"]) for it in told] == [(True, False)] * 2
    assert (await place.revoked(connection)).revocation is RevocationOutcome.CONFIRMED
    assert newest in revoked_tokens(place)
    assert alive(place) == [False, False]


async def test_the_tokens_of_an_overtaken_refresh_of_another_account_are_revoked(place: Installation):
    connection = await overtaken(place, "grant", "account-1", "account-2")
    await eventually(lambda: kept(place, connection), lambda it: not it)
    assert place.idp.families[0].refresh_token in revoked_tokens(place)
    assert alive(place) == [False, True]


async def test_the_tokens_of_a_refresh_that_another_refresh_overtook_are_its_own_grants(place: Installation):
    """Revoking them would end the grant in use."""
    place.idp.script(ok(expires_in=1))
    connection = await connected(place, await reaching(place, "token"), None)
    slow = Slow(place)
    await slow.refreshes(connection)
    answer = {"access_token": "at-2", "refresh_token": "rt-2", "token_type": "Bearer", "expires_in": 3600}
    place.idp.script(raw(json.dumps(answer).encode(), headers={"Content-Type": "application/json"}))
    await place.ensure_fresh(connection, 1)
    await place.until(connection, lambda it: it.generation == 2)
    assert (await slow.answered()).generation == 2
    assert (await kept(place, connection), revoked_tokens(place)) == ([], set())


async def test_the_tokens_of_a_refresh_that_an_import_overtook_wait(place: Installation):
    """The import may be of the same grant."""
    connection = await connected(place, await reaching(place, "token"), None)
    slow = Slow(place)
    await slow.refreshes(connection)
    consent = await place.unasked(connection, ConsentKind.IMPORT)
    tokens = ImportedTokens(access_token=Secret("at"), refresh_token=Secret("rt"), expires_at=None)
    async with place.store.write() as tx:
        await tx.consents.replace(consent, expected=consent.revision, tokens=tokens)
    await place.tell_consent(connection, consent)
    await place.until(connection, lambda it: it.generation == 2)
    await slow.answered()
    assert [it.pending for it in await kept(place, connection)] == [False, False]
    assert revoked_tokens(place) == set()


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with another connection"])
async def test_a_late_first_answer_without_a_refresh_token_is_revoked(place: Installation, others: bool):
    """Nothing can verify it. Its account isn't known: another connection's grant may end with its own."""
    integration = await place.integration()
    if others:
        await connected(place, integration, None, subject="user-2")
    connection = await place.begin(integration)
    consent, slow = await place.consent(connection, tell=False), Slow(place, refresh_token=None)
    await slow.is_overtaken(place, connection, consent)
    assert (await slow.answered()).failure is ErrorCode.OUTCOME_UNKNOWN
    await place.until_audited(connection, REPLACED if others else REVOKED)
    late = place.idp.families[-1]
    assert revoked_tokens(place) == (set() if others else set(late.access_tokens))
    assert await place.late_tokens(connection) == []
    if others:
        (told,) = await details(place, connection, REPLACED)
        assert told["old_revoked"] is False
        await place.revoked(connection)
        assert revoked_tokens(place) == set(late.access_tokens)
    assert await place.audited(connection, AuditAction.LATE_TOKENS_RECEIVED)
