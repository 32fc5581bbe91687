"""One connection on real parts against a provider that misbehaves: what is kept, said and counted.

Store (SQLite and PostgreSQL), worker and Temporal are real; the provider does what the script says.
"""

import asyncio
from datetime import timedelta

import pytest

from activities.single_use.pacing import CircuitBreakers
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.connection import EnsureFresh, RefreshReason
from tests.fakes.clock import SetClock
from tests.fakes.events.transmitter import id_token
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, NEVER_ROTATES, STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import (
    Answer,
    ScriptedProvider,
    drop,
    drop_after_commit,
    error,
    html,
    ok,
    raw,
    status,
)
from tests.faults.support.activities import Activities, at_temporal


async def test_an_audit_record_names_its_run_and_the_event_that_decided(place: Installation):
    connection = await place.connect()
    (installed,) = await place.audited(connection)
    assert installed.provenance is not None
    events = await place.parts.link.history(installed.provenance.workflow_id, installed.provenance.run_id)
    decided = next(e for e in events if int(e["eventId"]) == installed.provenance.event_id)
    assert decided["eventType"] == "EVENT_TYPE_WORKFLOW_TASK_STARTED"
    following = [e["eventType"] for e in events if int(e["eventId"]) > installed.provenance.event_id]
    assert "EVENT_TYPE_ACTIVITY_TASK_SCHEDULED" in following[:3]


async def test_invariant_3_fifty_callers_cost_one_refresh(place: Installation):
    """Ten at a time: Temporal takes ten updates in flight; the API coalesces the rest."""
    connection = await place.connect()
    for _ in range(5):
        answers = await asyncio.gather(*(place.ensure_fresh(connection, 1) for _ in range(10)))
        assert {answer.generation for answer in answers} == {2}
    assert place.idp.refreshes == 1


@pytest.mark.parametrize(
    "answer", [status(503, {"Retry-After": "1"}), status(500), html(), drop(), raw(b"{}")]
)
async def test_a_failure_that_is_no_refusal_keeps_the_grant(place: Installation, answer):
    connection = await place.connect(NEVER_ROTATES)
    before = await place.access_token(connection)
    place.idp.script(answer)
    told = await place.ensure_fresh(connection, 1)
    assert told.problem in (
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.PROVIDER_UNREACHABLE,
        ErrorCode.REPLY_UNREADABLE,
    )
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 1)
    assert await place.access_token(connection) == before


async def test_a_revocation_during_a_refresh_wins_and_takes_the_new_token_along(place: Installation):
    """Invariant 7: what lands while revoking is kept only to be revoked."""
    connection = await place.connect(STRICT)
    async with place.idp.in_flight(place.ensure_fresh(connection, 1)):
        await place.revoke(connection)
        assert (await place.row(connection)).state is LifecycleState.REVOKING
    ended = await place.until(connection, lambda c: c.state is LifecycleState.REVOKED)
    assert ended.generation == 2
    assert not any(family.alive for family in place.idp.families)


async def test_a_code_that_the_provider_refuses_leaves_the_consent_open_for_another_try(place: Installation):
    connection = await place.begin()
    place.idp.script(error("invalid_grant"), ok())
    await place.consent(connection)
    await place.idp.until("token", 1)
    assert (await place.row(connection)).state is LifecycleState.PENDING_CONSENT
    await place.consent(connection)
    assert (await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)).generation == 1


NONCE = "n-0123456789abcdef"


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"nonce": NONCE}, True),
        (None, True),  # whether one comes is the provider's business
        ({"nonce": "another"}, False),
        ({"nonce": [NONCE]}, False),
        ({}, False),
        ("no.id-token", False),
        ({"nonce": NONCE, "iss": "https://another.example"}, False),
        ({"nonce": NONCE, "aud": "another-client"}, False),
    ],
    ids=[
        *("ours", "none came", "another", "not a string", "no nonce", "no id token"),
        *("another issuer", "another client"),
    ],
)
async def test_oidc_core_3_1_3_7_an_id_token_that_is_not_ours_is_no_answer_to_our_consent(
    place: Installation, claims: dict[str, object] | str | None, good: bool
):
    token = claims
    if isinstance(claims, dict):
        token = id_token("account-1", **{"iss": place.idp.issuer, "aud": place.idp.client_id, **claims})
    connection = await place.begin()
    consent = await place.consent(connection, tell=False)
    bound = consent.model_copy(update={"nonce_hash": hash_of_nonce(NONCE)})
    async with place.store.write() as tx:
        await tx.consents.replace(bound, expected=consent.revision)
    place.idp.script(ok(**({"id_token": token} if token else {})))
    await place.tell_consent(connection, consent)
    if good:
        await place.until(connection, lambda row: row.state is LifecycleState.ACTIVE)
        return
    await place.until_audited(connection, AuditAction.CONSENT_FAILED)
    ended = await place.consent_of(consent)
    async with place.store.read() as tx:
        assert await tx.grants.get(TENANT, connection.id) is None
    assert (ended.status, ended.failure) == (ConsentStatus.FAILED, ErrorCode.ID_TOKEN_REFUSED)
    assert (await place.row(connection)).state is LifecycleState.PENDING_CONSENT
    (failed,) = await place.audited(connection, AuditAction.CONSENT_FAILED)
    assert failed.detail["reason"] == "id_token_refused"


@pytest.mark.parametrize(
    ("endless", "lost", "ends_as"),
    [
        (True, drop(), (LifecycleState.ACTIVE, 2, None)),
        (False, status(500), (LifecycleState.ACTIVE, 2, None)),
        (False, drop_after_commit(), (LifecycleState.NEEDS_REAUTH, 1, ErrorCode.OUTCOME_UNKNOWN)),
    ],
)
async def test_a_reported_token_ends_the_wait_for_a_lost_reply(
    place: Installation, endless: bool, lost: Answer, ends_as: tuple[LifecycleState, int, ErrorCode | None]
):
    """The provider refuses the token now, however long its expiry says it is valid."""
    place.idp.script(ok(expires_in=None if endless else 30 * 86_400))
    connection = await place.connect(STRICT)
    place.idp.script(lost)
    report = EnsureFresh(seen_generation=1, context=ASKED, refresh_reason=RefreshReason.UNAUTHORIZED)
    heard = await place.parts.link.ensure_fresh(TENANT, connection.id, report, timeout=PATIENCE_S)
    assert heard.problem is not None
    row = await place.until(
        connection, lambda it: it.generation == 2 or it.state is LifecycleState.NEEDS_REAUTH
    )
    assert (row.state, row.generation, row.reason) == ends_as


async def test_an_hours_wait_for_another_host_is_recorded_once(place: Installation):
    """The token stays valid for days, but the operator has to bring the other host back."""
    place.idp.script(ok(expires_in=30 * 86_400))
    connection = await place.connect(STRICT)
    clock = SetClock(place.parts.clock.now())
    gone, here = (Activities(place, host, clock=clock) for host in ("gone", "here"))
    place.idp.script(drop())
    assert (await gone.refresh(connection, 1)).failure is ErrorCode.PROVIDER_UNREACHABLE
    for hours, told in ((0, 0), (0.9, 0), (0.2, 1), (5, 1)):
        clock.advance(hours * 3600)
        news = await here.refresh(connection, 1, at_temporal(clock.now()))
        assert news.failure is ErrorCode.REFRESH_PENDING
        records = await place.audited(connection, AuditAction.CONNECTION_FAILING)
        assert [it.detail["reason"] for it in records] == [ErrorCode.REFRESH_PENDING] * told
    row, grant = await place.grant(connection)
    assert row.state is LifecycleState.ACTIVE
    assert grant.is_valid(clock.now() + timedelta(days=29)), "and is served meanwhile"


async def test_a_fleet_stops_calling_a_provider_that_fails(
    place: Installation, lenient: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
):
    no_time_passes = property(lambda _: lambda: 0.0, lambda _, own: None)  # else the breaker probes
    monkeypatch.setattr(CircuitBreakers, "elapsed", no_time_passes, raising=False)
    connections = await place.fleet(await place.integration(NEVER_ROTATES), 12)
    before = lenient.count("token")
    lenient.script(*[status(503)] * 100)
    told = [await place.ensure_fresh(connection, 1) for connection in connections]
    assert {it.problem for it in told} == {ErrorCode.PROVIDER_ERROR}
    sent = lenient.count("token") - before
    assert 5 <= sent <= 7, "five to notice it; the others were held back, but for retries under way"
    assert all(it.retry_after for it in told)
    assert {(await place.row(it)).state for it in connections} == {LifecycleState.ACTIVE}


async def test_refusals_of_single_connections_open_no_breaker(place: Installation, lenient: ScriptedProvider):
    """A dead connection, or one that is answered with an unknown error code, stops no other."""
    connections = await place.fleet(await place.integration(NEVER_ROTATES), 8)
    lenient.script(*[error("invented")] * 7)
    told = [await place.ensure_fresh(connection, 1) for connection in connections]
    assert [it.problem for it in told[:7]] == [ErrorCode.PROVIDER_ERROR] * 7
    assert told[7].generation == 2


async def test_a_rate_limited_subject_blocks_no_other(place: Installation):
    limited, other = await place.fleet(await place.integration(), 2)
    place.idp.script(status(429, {"Retry-After": "600"}))
    told = await place.ensure_fresh(limited, 1)
    assert told.problem is ErrorCode.PROVIDER_RATE_LIMITED
    assert told.retry_after is not None
    assert told.retry_after > 300, "its own schedule keeps to what it was told"
    assert (await place.ensure_fresh(other, 1)).generation == 2
