"""Consents, imports too, hold their secrets until they are used; attempts are open one at a time."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from activities.pruning import FIRST_PLACE
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, Tenant, new_id
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.core.single_use.pacing import Share
from evergrant_server.store import Store
from tests.conformance.store.samples import ACME, a_connection, a_consent, added, an_attempt, granted
from tests.fakes.databases import NOW
from tests.fakes.failures import fails


async def test_forgotten_secrets_are_gone(store: Store):
    consent = a_consent(await added(store, a_connection()))
    async with store.write() as tx:
        await tx.consents.add(consent, Secret("link"))
        consent = await tx.consents.replace(consent, expected=1, verifier=Secret("v"), code=Secret("c"))
        await tx.consents.erase_secrets(consent)
    for read in (lambda tx: tx.consents.verifier(consent), lambda tx: tx.consents.code(consent)):
        with fails(ErrorCode.NOT_FOUND):
            async with store.read() as tx:
                await read(tx)


async def test_an_import_keeps_its_tokens_until_they_are_used(store: Store):
    connection = await added(store, a_connection())
    changes = {"kind": ConsentKind.IMPORT, "status": ConsentStatus.CODE_RECEIVED}
    consent = a_consent(connection).model_copy(update=changes)
    tokens = ImportedTokens(
        access_token=Secret("at"), refresh_token=Secret("rt"), expires_at=NOW, metadata={"a": 1}
    )
    async with store.write() as tx:
        await tx.consents.add(consent, None, tokens)
    async with store.read() as tx:
        assert await tx.consents.import_consent(ACME, connection.id) == consent
        assert await tx.consents.imported_tokens(consent) == tokens
        assert await tx.consents.open_consent(ACME, connection.id, NOW) is None  # it has no link
        raw = (await tx.connection.exec_driver_sql("SELECT sealed_tokens FROM consent")).scalar_one()
    assert bytes(raw).startswith(b"EVS")
    assert b"access_token" not in bytes(raw)
    async with store.write() as tx:
        await tx.consents.erase_secrets(consent)
    with fails(ErrorCode.NOT_FOUND):
        async with store.read() as tx:
            await tx.consents.imported_tokens(consent)


async def test_only_a_consent_that_can_go_on_is_open(store: Store):
    connection = await added(store, a_connection())
    old = a_consent(connection, created_at=NOW - timedelta(minutes=5))
    new = a_consent(connection, status=ConsentStatus.STARTED)
    async with store.write() as tx:
        for consent in (old, new, a_consent(connection, status=ConsentStatus.DENIED)):
            await tx.consents.add(consent, Secret("link"))
    async with store.read() as tx:
        assert await tx.consents.open_consent(ACME, connection.id, NOW) == new
        assert await tx.consents.open_consent(ACME, connection.id, NOW + timedelta(hours=1)) is None


async def test_an_open_consent_belongs_to_its_app_and_session(store: Store):
    connection = await added(store, a_connection())
    apps = {
        (app, challenge): a_consent(connection, app_id=app, challenge=challenge)
        for app in (None, new_id("app"), new_id("app"))
        for challenge in (None, "c")
    }
    async with store.write() as tx:
        for consent in apps.values():
            await tx.consents.add(consent, Secret("link"))
    async with store.read() as tx:
        for (app, challenge), consent in apps.items():
            mine = {"app_id": app, "challenge": challenge}
            assert await tx.consents.open_consent(ACME, connection.id, NOW, **mine) == consent


async def test_a_consent_that_was_not_confirmed_is_reopened_without_its_code(store: Store):
    connection = await added(store, a_connection())
    waits = {"status": ConsentStatus.CONFIRMING, "confirm_hash": "h", "confirm_by": NOW, "state_hash": "s"}
    consent = a_consent(connection, browser_hash="b", **waits)
    async with store.write() as tx:
        await tx.consents.add(consent, Secret("link"))
        consent = await tx.consents.replace(consent, expected=1, verifier=Secret("v"), code=Secret("c"))
        assert await tx.consents.confirming(ACME, connection.id) == [consent]
        assert await tx.consents.by_confirm_code(ACME, "h") == consent
        assert await tx.consents.by_confirm_code(Tenant("other"), "h") is None
        after = await tx.consents.reopen(consent)
    assert (after.status, after.state_hash, after.browser_hash) == (ConsentStatus.OPEN, None, None)
    async with store.read() as tx:
        assert await tx.consents.confirming(ACME, connection.id) == []
        assert (await tx.consents.connect_link(after)).reveal() == "link"
        with fails(ErrorCode.NOT_FOUND):
            await tx.consents.code(after)


async def test_a_link_or_state_belongs_to_one_consent(store: Store):
    connection = await added(store, a_connection())
    async with store.write() as tx:
        await tx.consents.add(a_consent(connection, link_hash="same"), Secret("link"))
        with fails(ErrorCode.ALREADY_EXISTS):
            await tx.consents.add(a_consent(connection, link_hash="same"), Secret("link"))


async def test_one_attempt_is_open_per_connection_and_slot(store: Store):
    connection = await granted(store)

    async def begin() -> None:
        async with store.write() as tx:
            await tx.attempts.open(an_attempt(connection))

    ended = await asyncio.gather(*(begin() for _ in range(5)), return_exceptions=True)
    assert [it.code for it in ended if isinstance(it, Failure)] == [ErrorCode.STORE_CONFLICT] * 4
    async with store.write() as tx:
        await tx.attempts.open(an_attempt(connection, slot="bot"))


async def test_an_attempt_is_closed_once_and_makes_room(store: Store):
    connection = await granted(store)
    attempt = an_attempt(connection)
    async with store.write() as tx:
        await tx.attempts.open(attempt)
        assert await tx.attempts.open_of_any_kind(ACME, connection.id, "main") == attempt

    async def close(outcome: AttemptOutcome) -> None:
        async with store.write() as tx:
            await tx.attempts.close(attempt, outcome, NOW)

    ended = await asyncio.gather(
        close(AttemptOutcome.INSTALLED), close(AttemptOutcome.SUPERSEDED), return_exceptions=True
    )
    assert [it.code for it in ended if isinstance(it, Failure)] == [ErrorCode.STORE_CONFLICT]
    async with store.write() as tx:
        assert await tx.attempts.open_of_any_kind(ACME, connection.id, "main") is None
        again = an_attempt(connection)
        await tx.attempts.open(again)
        closed = await tx.attempts.close(again, AttemptOutcome.NOT_SENT, NOW)
        with pytest.raises(Failure):
            await tx.attempts.close(closed, AttemptOutcome.INSTALLED, NOW)
    assert (closed.outcome, closed.closed_at, closed.revision) == (AttemptOutcome.NOT_SENT, NOW, 2)


HARMLESS = {AttemptOutcome.INSTALLED, AttemptOutcome.NOT_SENT}


@pytest.mark.parametrize("beside", [None, *sorted(set(AttemptOutcome) - {AttemptOutcome.INSTALLED_LATE})])
async def test_an_answer_that_was_installed_late_beside_another_use_has_crossed_it(
    store: Store, beside: AttemptOutcome | None
):
    crossed = beside not in HARMLESS
    connection = await granted(store)
    mine = (ACME, connection.id, 2)
    first = an_attempt(connection)
    async with store.write() as tx:
        await tx.attempts.open(first)
        first = await tx.attempts.close(first, AttemptOutcome.SUPERSEDED, NOW)
        second = an_attempt(connection)
        await tx.attempts.open(second)
        if beside is not None:
            await tx.attempts.close(second, beside, NOW)
        assert not await tx.attempts.may_be_invalidated(*mine), "nobody has installed what was taken over"
        assert [it.id for it in await tx.attempts.other_possibly_harmful_uses(first)] == [second.id] * crossed
        await tx.attempts.mark_installed_late(first)
        assert await tx.attempts.may_be_invalidated(*mine) is crossed
        assert not await tx.attempts.may_be_invalidated(ACME, connection.id, 1)
        assert not await tx.attempts.may_be_invalidated(ACME, connection.id, 3)
        assert not await tx.attempts.may_be_invalidated(Tenant("other"), connection.id, 2)
        row = await tx.attempts.get(ACME, first.id)
        assert row is not None
        assert (row.outcome, row.closed_at) == (AttemptOutcome.INSTALLED_LATE, NOW)
        with pytest.raises(Failure, match="no longer at revision"):
            await tx.attempts.mark_installed_late(first)


async def test_a_code_that_was_refused_beside_it_ended_nothing(store: Store):
    connection = await granted(store)
    first = an_attempt(connection)
    async with store.write() as tx:
        await tx.attempts.open(first)
        await tx.attempts.mark_installed_late(await tx.attempts.close(first, AttemptOutcome.SUPERSEDED, NOW))
        code = an_attempt(connection, kind=AttemptKind.CODE_EXCHANGE, credential="cns_1")
        await tx.attempts.open(code)
        await tx.attempts.close(code, AttemptOutcome.REFUSED, NOW)
        assert not await tx.attempts.may_be_invalidated(ACME, connection.id, 2)


async def test_the_refreshes_of_an_integration_that_worked_and_those_that_fail(store: Store):
    mine = await granted(store)
    other, elsewhere = (
        await granted(store, subject="other"),
        a_connection(subject="x", integration_id="int_2"),
    )
    await added(store, elsewhere)
    hours = [NOW + timedelta(hours=number) for number in range(6)]
    async with store.write() as tx:
        for connection, at, outcome, kind in (
            (mine, 0, AttemptOutcome.REFUSED, AttemptKind.CODE_EXCHANGE),
            (mine, 1, AttemptOutcome.REFUSED, AttemptKind.REFRESH),
            (mine, 2, AttemptOutcome.REFUSED, AttemptKind.REFRESH),
            (other, 0, AttemptOutcome.INSTALLED, AttemptKind.REFRESH),
            (other, 1, AttemptOutcome.INSTALLED, AttemptKind.REFRESH),
            (other, 2, AttemptOutcome.INSTALLED, AttemptKind.REFRESH),
            (other, 3, AttemptOutcome.INSTALLED, AttemptKind.CODE_EXCHANGE),
            (other, 4, AttemptOutcome.REFUSED, AttemptKind.REFRESH),
            (elsewhere, 5, AttemptOutcome.INSTALLED, AttemptKind.REFRESH),
        ):
            attempt = an_attempt(connection, integration_id=connection.integration_id, kind=kind)
            await tx.attempts.open(attempt)
            await tx.attempts.close(attempt, outcome, hours[at])
        failing = other.refresh_failed(ErrorCode.PROVIDER_ERROR, hours[4], token_over=False)
        failing = await tx.connections.replace(failing, expected=other.revision)
    async with store.read() as tx:
        first = await tx.attempts.first_refused(ACME, mine.id, 1)
        assert first is not None
        assert first.closed_at == hours[1]
        assert await tx.attempts.first_refused(ACME, mine.id, 2) is None
        assert await tx.attempts.newest_refresh(ACME, mine.integration_id) == hours[2]
        assert await tx.attempts.newest_refresh(ACME, mine.integration_id, 3) == hours[0]
        assert await tx.attempts.newest_refresh(ACME, mine.integration_id, 4) is None
        used = [await tx.attempts.share_used_until(ACME, mine.integration_id, Share(it, 60)) for it in (2, 4)]
        assert used == [hours[1] + timedelta(minutes=1), None]
        assert await tx.attempts.newest_refresh(Tenant("other"), mine.integration_id) is None
        assert await tx.attempts.refreshes_of_others(mine, hours[0]) == (hours[1], hours[2])
        assert await tx.attempts.refreshes_of_others(mine, hours[2]) is None
        assert await tx.attempts.refreshes_of_others(other, hours[0]) is None
        failing_since = [
            await tx.connections.others_fail(mine, after) for after in (None, hours[3], hours[4])
        ]
        assert failing_since == [True, True, False]
        assert not await tx.connections.others_fail(other, None)
        assert not await tx.connections.others_fail(elsewhere, None)
        assert not await tx.connections.others_refused(mine, hours[0])
    async with store.write() as tx:
        refused = failing.rejected(ErrorCode.REFRESH_REFUSED, hours[5])
        await tx.connections.replace(refused, expected=failing.revision)
    async with store.read() as tx:
        found = [await tx.connections.others_refused(it, hours[4]) for it in (mine, other, elsewhere)]
        assert found == [True, False, False]
        assert not await tx.connections.others_refused(mine, hours[5])


async def closed(
    store: Store, connection: Connection, generation: int, days: int, outcome: AttemptOutcome, **changes: Any
) -> AttemptId:
    """An attempt that ended so, that many days before the moment at which a test prunes."""
    attempt = an_attempt(
        connection, from_generation=generation, integration_id=connection.integration_id, **changes
    )
    async with store.write() as tx:
        await tx.attempts.open(attempt)
        await tx.attempts.close(attempt, outcome, NOW - timedelta(days=days))
    return attempt.id


async def ids_of_attempts(store: Store, *ids: AttemptId) -> list[AttemptId]:
    """Those of them that the store still has."""
    async with store.read() as tx:
        rows = [await tx.attempts.get(ACME, id) for id in ids]
    return [row.id for row in rows if row is not None]


async def pruned(store: Store, limit: int = 500) -> int:
    """Prune what is older than 90 days; returns the number of steps."""
    steps, seen = 0, FIRST_PLACE
    while True:
        async with store.write() as tx:
            last = await tx.attempts.prune(NOW - timedelta(days=90), seen, NOW, limit)
        if last is None:
            return steps
        steps, seen = steps + 1, last


async def test_attempts_are_pruned_once_they_are_old_and_two_grants_have_followed(store: Store):
    connection = await added(store, a_connection(generation=5))
    generation, other = connection.generation, await added(store, a_connection(generation=1, subject="other"))
    installed = AttemptOutcome.INSTALLED
    old = [
        await closed(store, connection, number, 200 - number, installed) for number in range(generation - 1)
    ]
    last = [await closed(store, connection, generation - 1, 120, installed)]
    unknown = await closed(store, connection, 0, 300, AttemptOutcome.SUPERSEDED)
    followed = await closed(store, connection, 1, 80, AttemptOutcome.REFUSED)
    of_other = await closed(store, other, other.generation, 500, AttemptOutcome.REFUSED)
    assert await pruned(store) == 1
    kept = [*last, followed, of_other]
    assert await ids_of_attempts(store, *old, unknown, *kept) == kept


async def test_the_newest_refresh_of_an_integration_is_kept_and_no_open_attempt_is_pruned(store: Store):
    connection = await added(store, a_connection(generation=9))
    newest = await closed(store, connection, 2, 200, AttemptOutcome.INSTALLED)
    under_way = an_attempt(connection, opened_at=NOW - timedelta(days=400), from_generation=0)
    async with store.write() as tx:
        await tx.attempts.open(under_way)
    await pruned(store)
    assert await ids_of_attempts(store, newest, under_way.id) == [newest, under_way.id]
    async with store.read() as tx:
        worked_at = await tx.attempts.newest_refresh(ACME, connection.integration_id)
    assert worked_at == NOW - timedelta(days=200)


async def test_attempts_are_pruned_in_steps_and_what_a_step_left_goes_with_the_next(store: Store):
    connections = [await added(store, a_connection(generation=30, subject=name)) for name in ("a", "b")]
    ids = [
        await closed(store, connection, number, 200 - number, AttemptOutcome.NOT_SENT)
        for connection in connections
        for number in range(25)
    ]
    assert await pruned(store, limit=2) == 3, "twenty in a step"
    assert await ids_of_attempts(store, *ids) == []
