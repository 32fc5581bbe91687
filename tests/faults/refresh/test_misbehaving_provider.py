"""One connection on real parts against a provider that misbehaves: what is kept, said and counted.

Store (SQLite and PostgreSQL), worker and Temporal are real; the provider does what the script says.
"""

import asyncio

import httpx2
import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.consent import ConsentStatus, hash_of_nonce
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import RefreshRules, Rotation
from tests.fakes.events.transmitter import id_token
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation, admin_key
from tests.fakes.platform.serving import serving
from tests.fakes.providers.scripted_provider import (
    ScriptedProvider,
    drop,
    drop_after_commit,
    error,
    hold_answer,
    html,
    ok,
    raw,
    status,
)

STRICT = RefreshRules(rotation=Rotation.STRICT)
NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)


async def test_from_consent_to_revocation(place: Installation, idp: ScriptedProvider):
    connection = await place.connect(idp)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    token = await place.access_token(connection)
    assert idp.active(token)
    await place.revoke(connection)
    ended = await place.until(connection, lambda c: c.state is LifecycleState.REVOKED)
    assert ended.revocation is RevocationOutcome.CONFIRMED
    assert not idp.active(token)
    assert await place.open_attempts(connection) == 0
    exported = await place.until_exported(connection)
    assert exported == [
        AuditAction.GRANT_INSTALLED,
        AuditAction.GRANT_REFRESHED,
        AuditAction.REVOKED,
        AuditAction.HISTORY_EXPORTED,
    ]


async def test_an_audit_record_names_its_run_and_the_event_that_decided(
    place: Installation, idp: ScriptedProvider
):
    connection = await place.connect(idp)
    (installed,) = await place.audited(connection)
    assert installed.provenance is not None
    events = await place.parts.link.history(installed.provenance.workflow_id, installed.provenance.run_id)
    decided = next(e for e in events if int(e["eventId"]) == installed.provenance.event_id)
    assert decided["eventType"] == "EVENT_TYPE_WORKFLOW_TASK_STARTED"
    following = [e["eventType"] for e in events if int(e["eventId"]) > installed.provenance.event_id]
    assert "EVENT_TYPE_ACTIVITY_TASK_SCHEDULED" in following[:3]


async def test_invariant_3_fifty_callers_cost_one_refresh(place: Installation, idp: ScriptedProvider):
    """Ten at a time: Temporal takes ten updates in flight; the API coalesces the rest."""
    connection = await place.connect(idp)
    for _ in range(5):
        answers = await asyncio.gather(*(place.ensure_fresh(connection, 1) for _ in range(10)))
        assert {answer.generation for answer in answers} == {2}
    assert idp.refreshes == 1


@pytest.mark.parametrize(
    "answer", [status(503, {"Retry-After": "1"}), status(500), html(), drop(), raw(b"{}")]
)
async def test_a_failure_that_is_no_refusal_keeps_the_grant(
    place: Installation, idp: ScriptedProvider, answer
):
    connection = await place.connect(idp, NEVER_ROTATES)
    before = await place.access_token(connection)
    idp.script(answer)
    told = await place.ensure_fresh(connection, 1)
    assert told.problem in (
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.PROVIDER_UNREACHABLE,
        ErrorCode.REPLY_UNREADABLE,
    )
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 1)
    assert await place.access_token(connection) == before


async def test_an_outage_ends_by_itself(place: Installation, idp: ScriptedProvider):
    connection = await place.connect(idp, NEVER_ROTATES)
    idp.script(status(503), status(503))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.PROVIDER_ERROR
    healed = await place.until(connection, lambda c: c.generation == 2)
    assert healed.state is LifecycleState.ACTIVE
    assert idp.count("token", grant_type="refresh_token") == 3


async def test_a_lost_answer_is_sent_again_where_that_is_safe(place: Installation, lenient: ScriptedProvider):
    connection = await place.connect(lenient, NEVER_ROTATES)
    lenient.script(drop_after_commit())
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.PROVIDER_UNREACHABLE
    healed = await place.until(connection, lambda c: c.generation == 2)
    assert healed.state is LifecycleState.ACTIVE


async def test_a_lost_answer_is_not_sent_again_while_a_strict_provider_still_honours_the_token(
    place: Installation, idp: ScriptedProvider
):
    """A second use would kill the family, and with it the access token that is still good."""
    connection = await place.connect(idp, STRICT)
    token = await place.access_token(connection)
    idp.script(drop_after_commit())
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.PROVIDER_UNREACHABLE
    assert (await place.ensure_fresh(connection, 1)).problem is not None
    assert idp.count("token", grant_type="refresh_token") == 1
    assert idp.active(token)
    assert await place.open_attempts(connection) == 1


async def test_a_revocation_during_a_refresh_wins_and_takes_the_new_token_along(
    place: Installation, idp: ScriptedProvider
):
    """Invariant 7: what lands while revoking is kept only to be revoked."""
    connection = await place.connect(idp, STRICT)
    gate = asyncio.Event()
    idp.script(hold_answer(gate))
    refresh = asyncio.create_task(place.ensure_fresh(connection, 1))
    await idp.until("token", 2)
    await place.revoke(connection)
    assert (await place.row(connection)).state is LifecycleState.REVOKING
    gate.set()
    await refresh
    ended = await place.until(connection, lambda c: c.state is LifecycleState.REVOKED)
    assert ended.generation == 2
    assert not any(family.alive for family in idp.families)


async def test_revoked_is_said_only_once_the_provider_has_confirmed(
    place: Installation, idp: ScriptedProvider
):
    connection = await place.connect(idp)
    idp.script(status(503, {"Retry-After": "1"}), at="revoke")
    await place.revoke(connection)
    await idp.until("revoke", 1)
    assert (await place.row(connection)).state is LifecycleState.REVOKING
    ended = await place.until(connection, lambda c: c.state is LifecycleState.REVOKED)
    assert ended.revocation is RevocationOutcome.CONFIRMED
    assert AuditAction.REVOCATION_FAILED in await place.actions(connection)


async def test_a_code_that_the_provider_refuses_leaves_the_consent_open_for_another_try(
    place: Installation, idp: ScriptedProvider
):
    integration = await place.integration(idp)
    connection = await place.begin(integration)
    idp.script(error("invalid_grant"), ok())
    await place.consent(idp, integration, connection)
    await idp.until("token", 1)
    assert (await place.row(connection)).state is LifecycleState.PENDING_CONSENT
    await place.consent(idp, integration, connection)
    assert (await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)).generation == 1


async def test_invariant_9_reconcile_rebuilds_what_temporal_lost(place: Installation, idp: ScriptedProvider):
    first, second = await place.connect(idp), await place.connect(idp)
    await place.terminate(first)
    done = await place.parts.reconciler.reconcile_all()
    assert (done.live, done.started) == (2, 1)
    assert (await place.parts.reconciler.reconcile_all()).started == 0
    for connection in (first, second):
        assert (await place.ensure_fresh(connection, 1)).generation == 2


async def test_invariant_9_a_store_from_an_old_backup_sends_no_spent_token(
    place: Installation, idp: ScriptedProvider
):
    """The workflow's generation tells; nothing is sent, and reconcile names the connection."""
    connection = await place.connect(idp)
    old = await place.grant(connection)
    await place.ensure_fresh(connection, 1)
    await place.restore(connection, old)
    sent = idp.count("token")
    told = await place.ensure_fresh(connection, 2)
    assert told.problem is ErrorCode.STORE_BEHIND
    assert idp.count("token") == sent
    assert (await place.parts.reconciler.reconcile_all()).store_behind == (connection.id,)


async def test_a_reported_token_whose_refresh_is_refused_is_leased_no_more(
    place: Installation, idp: ScriptedProvider
):
    """The subject ended the grant at the provider; the date of the access token still lies ahead."""
    connection = await place.connect(idp)
    idp.families[0].alive = False
    headers = {"Authorization": f"Bearer {await admin_key(place.parts)}"}
    at = f"/v1/connections/{connection.id}"
    async with (
        serving(place.parts.settings) as url,
        httpx2.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE_S, headers=headers) as http,
    ):
        assert (await http.post(f"{at}/token", json={})).status_code == 200
        idp.script(error("temporarily_unavailable", 503))
        report = {"generation": 1, "reason": "unauthorized"}
        assert (await http.post(f"{at}/refresh", json=report)).json()["code"] == "provider_error"
        assert (await http.post(f"{at}/token", json={})).status_code == 200, "nothing confirms the report"
        await place.until(connection, lambda row: row.state is LifecycleState.NEEDS_REAUTH)
        answer = await http.post(f"{at}/token", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "consent_required"), answer.text


NONCE = "n-0123456789abcdef"


@pytest.mark.parametrize(
    ("token", "good"),
    [
        (id_token("account-1", nonce=NONCE), True),
        (None, True),  # whether one comes is the provider's business
        (id_token("account-1", nonce="another"), False),
        (id_token("account-1", nonce=[NONCE]), False),
        (id_token("account-1"), False),
        ("no.id-token", False),
    ],
    ids=["ours", "none came", "another", "not a string", "no nonce", "no id token"],
)
async def test_oidc_core_3_1_3_7_an_id_token_without_our_nonce_is_no_answer_to_our_consent(
    place: Installation, idp: ScriptedProvider, token: str | None, good: bool
):
    integration = await place.integration(idp)
    connection = await place.begin(integration)
    consent = await place.consent(idp, integration, connection, tell=False)
    bound = consent.model_copy(update={"nonce_hash": hash_of_nonce(NONCE)})
    async with place.store.write() as tx:
        await tx.consents.replace(bound, expected=consent.revision)
    idp.script(ok(**({"id_token": token} if token else {})))
    await place.tell_consent(connection, consent)
    if good:
        await place.until(connection, lambda row: row.state is LifecycleState.ACTIVE)
        return
    await place.until_audited(connection, AuditAction.CONSENT_FAILED)
    async with place.store.read() as tx:
        ended = await tx.consents.get(TENANT, consent.id)
        assert await tx.grants.get(TENANT, connection.id) is None
    assert ended is not None
    assert (ended.status, ended.failure) == (ConsentStatus.FAILED, ErrorCode.ID_TOKEN_REFUSED)
    assert (await place.row(connection)).state is LifecycleState.PENDING_CONSENT
    (failed,) = [it for it in await place.audited(connection) if it.action is AuditAction.CONSENT_FAILED]
    assert failed.detail["reason"] == "id_token_refused"
