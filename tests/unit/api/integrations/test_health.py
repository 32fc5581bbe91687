"""What fails at an integration, by cause: how often, in the provider's words, and whose turn it is."""

import sqlite3
from datetime import timedelta
from typing import Any

import pytest

from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.provider_words import MOST_OF_A_WHOLE_REPLY, ProviderWords
from evergrant_server.core.single_use.recurring_errors import UNDECIDED
from evergrant_server.store.database import sqlite
from tests.fakes.api import OTHER, Api
from tests.fakes.databases import NOW

HEALTH = "/v1/integrations/crm/health"
REFUSED, DEAD = ErrorCode.CLIENT_REJECTED, ErrorCode.GRANT_REJECTED
WORDS = {"error": "invalid_client", "description": "Unknown secret.", "status": 401}


async def record(api: Api, connection: Connection, action: AuditAction, **detail: Any) -> None:
    """What a worker appends beside the change of the row."""
    context, now = RequestContext(by="worker"), api.clock.now()
    object, tenant = connection.id, connection.tenant
    entry = AuditEntry(tenant=tenant, at=now, action=action, object=object, context=context, detail=detail)
    async with api.worker.write() as tx:
        await audit.append(tx, entry)


async def refresh_fails(
    api: Api, connection: Connection, code: ErrorCode, detail: dict[str, Any] | None = None, **said: Any
) -> None:
    """What a worker writes of a refresh that was answered with an error."""
    now = api.clock.now()
    async with api.worker.write() as tx:
        row = await tx.connections.get(connection.tenant, connection.id)
        assert row is not None
        await tx.connections.replace(row.refresh_failed(code, now, token_over=False), expected=row.revision)
    await record(api, connection, AuditAction.REFRESH_FAILED, reason=code, **(detail or {}), **words(said))


async def refused_for_good(api: Api, connection: Connection, code: ErrorCode, **said: Any) -> None:
    await api.change(connection, lambda row: row.rejected(code, api.clock.now()))
    await record(api, connection, AuditAction.NEEDS_REAUTH, reason=code, **words(said))


def words(said: dict[str, Any]) -> dict[str, Any]:
    if not said:
        return {}
    said = {"error": None, "description": None, "secrets": (), **said}
    return ProviderWords.cleaned(said.pop("error"), said.pop("description"), **said).as_detail()


async def actives(api: Api, integration: Integration, *subjects: str) -> list[Connection]:
    return [await api.active(integration, subject=subject) for subject in subjects]


async def health(api: Api, admin: str) -> dict[str, Any]:
    answer = await api.get(HEALTH, admin)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_integration_without_connections_has_no_failure(api: Api, admin: str):
    await api.integration()
    assert await health(api, admin) == {
        **{"name": "crm", "provider": "gitlab", "state": "ready", "problem": None, "complete": True},
        **{"active": 0, "failing": 0, "needs_reauth": 0, "pending_consent": 0, "revoking": 0, "causes": []},
    }


async def test_failures_by_cause_and_by_words_what_an_admin_repairs_first(api: Api, admin: str):
    crm = await api.integration()
    ann, bo, cyd, dan, eve, fay = await actives(api, crm, *["ann", "bo", "cyd", "dan", "eve", "fay"])
    await api.connection(crm, subject="gus")
    api.clock.advance(60)
    await refresh_fails(api, ann, REFUSED, **WORDS)
    api.clock.advance(60)
    for connection in (bo, cyd):
        await refresh_fails(api, connection, REFUSED, **{**WORDS, "description": "Secret expired."})
    for connection in (dan, eve):
        await refused_for_good(api, connection, DEAD, error="invalid_grant", status=400)
    await api.change(fay, lambda row: row.revocation_requested("left", api.clock.now()))
    shown = await health(api, admin)
    counts = ("active", "failing", "needs_reauth", "pending_consent", "revoking")
    assert [shown[count] for count in counts] == [3, 3, 2, 1, 1]
    client, grant = shown["causes"]
    assert (client["code"], client["state"], client["connections"]) == ("client_rejected", "active", 3)
    assert client["repairer"] == "integration_admin"
    assert client["since"] == (NOW + timedelta(seconds=60)).isoformat().replace("+00:00", "Z")
    assert client["next_step"] == "refresh due"
    assert client["connection_id"] in (bo.id, cyd.id)
    assert [(said["description"], said["connections"]) for said in client["provider_said"]] == [
        ("Secret expired.", 2),
        ("Unknown secret.", 1),
    ]
    assert (grant["code"], grant["state"], grant["repairer"]) == ("grant_rejected", "needs_reauth", "subject")
    assert (grant["connections"], grant["next_step"], grant["next_at"]) == (2, "reauthorize", None)


async def test_the_words_are_of_the_failure_that_counts_and_without_secrets(api: Api, admin: str):
    (ann,) = await actives(api, await api.integration(), "ann")
    await refresh_fails(api, ann, REFUSED, error="an_earlier_one", status=400)
    api.clock.advance(60)
    said = {"error": "invalid_client", "description": "secret hush-hush of ann@acme.example"}
    await refresh_fails(
        api,
        ann,
        REFUSED,
        secrets=("hush-hush",),
        status=400,
        error=said["error"],
        description=said["description"],
    )
    await record(api, ann, AuditAction.LEASE_ISSUED)
    (cause,) = (await health(api, admin))["causes"]
    (wording,) = cause["provider_said"]
    assert wording["description"] == "secret [redacted] of [redacted]"
    assert wording["connection_id"] == ann.id


async def test_a_reply_that_nothing_could_read_is_shown_whole(api: Api, admin: str):
    (ann,) = await actives(api, await api.integration(), "ann")
    page = "Scheduled maintenance until noon. " * 20
    shown = {"description": page, "status": 200, "most": MOST_OF_A_WHOLE_REPLY}
    await refresh_fails(api, ann, ErrorCode.REPLY_UNREADABLE, **shown)
    (cause,) = (await health(api, admin))["causes"]
    (wording,) = cause["provider_said"]
    assert (cause["repairer"], wording["description"]) == ("integration_admin", page.strip())
    assert (await api.row(ann.tenant, ann.id)).generation == 1, "the grant stays"


@pytest.mark.parametrize(
    ("undecided", "another", "flow", "sole"),
    [
        (True, False, Flow.AUTHORIZATION_CODE, True),
        (True, True, Flow.AUTHORIZATION_CODE, False),  # whose refreshes tell
        (False, False, Flow.AUTHORIZATION_CODE, False),  # such as an outage, or a wrong client
        (True, False, Flow.CLIENT_CREDENTIALS, False),  # which has no subject to ask
    ],
)
async def test_a_sole_connection_that_cant_be_decided_is_shown_as_such(
    api: Api, admin: str, undecided: bool, another: bool, flow: Flow, sole: bool
):
    crm = await api.integration()
    ann = await api.active(crm, subject="ann", flow=flow)
    if another:
        await actives(api, crm, "bo")
    api.clock.advance(60)
    since = api.clock.now().isoformat()
    api.clock.advance(60)
    code, detail = ErrorCode.PROVIDER_ERROR, {UNDECIDED: {"since": since}} if undecided else {}
    await refresh_fails(api, ann, code, detail, error="E-17", status=400)
    (cause,) = (await health(api, admin))["causes"]
    week_on = NOW + timedelta(days=7, seconds=60)
    assert cause["is_sole"] is sole
    assert cause["decided_by"] == (week_on.isoformat().replace("+00:00", "Z") if sole else None)
    assert len(cause["provider_said"]) == 1


async def test_without_temporal_the_next_step_is_missing_and_nothing_else(api: Api, admin: str):
    (ann,) = await actives(api, await api.integration(), "ann")
    await refresh_fails(api, ann, REFUSED)
    api.link.up = False
    (cause,) = (await health(api, admin))["causes"]
    assert (cause["next_step"], cause["next_at"], cause["connections"]) == (None, None, 1)


async def test_only_who_may_see_the_integration_sees_its_health(api: Api, admin: str):
    assert (await api.get(HEALTH, admin)).status_code == 404
    await api.integration()
    other, theirs = await api.integration("other"), await api.integration(tenant=OTHER)
    for integration in (other, theirs):
        await refresh_fails(api, await api.active(integration), REFUSED)
    assert (await health(api, admin))["failing"] == 0
    assert (await api.get(HEALTH)).status_code == 401
    for key in (
        await api.app_with("pipeline", Action.TOKEN, Action.CONNECT, Action.PROXY),
        await api.app_with("admin-of-another", Action.ADMIN, integration="other"),
    ):
        assert (await api.get(HEALTH, key)).status_code == 403
    auditor = await api.app_with("auditor-of-it", Action.AUDIT, integration="crm")
    assert (await api.get(HEALTH, auditor)).status_code == 200
    theirs_key = await api.app_with("admin-there", Action.ADMIN, tenant=OTHER)
    assert (await health(api, theirs_key))["failing"] == 1


async def test_a_first_token_that_fails_is_a_cause_and_a_consent_that_is_awaited_is_none(
    api: Api, admin: str
):
    crm = await api.integration()
    waiting = await api.connection(crm, subject="ann")
    await api.connection(crm, subject="bo")
    await api.change(waiting, lambda row: row.waiting_for_grant(REFUSED, api.clock.now()))
    shown = await health(api, admin)
    assert [(cause["state"], cause["connections"]) for cause in shown["causes"]] == [
        (LifecycleState.PENDING_CONSENT.value, 1)
    ]


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stores that are opened from here on send to SQLite, with its values."""
    sent: list[str] = []
    configure = sqlite.configure

    def traced(driver: sqlite3.Connection, record: object) -> None:
        configure(driver, record)
        driver.set_trace_callback(sent.append)

    monkeypatch.setattr(sqlite, "configure", traced)
    return sent


async def test_many_failures_take_as_many_statements_as_one_and_none_reads_a_whole_table(
    statements: list[str], api: Api, admin: str
):
    crm = await api.integration()

    async def reads() -> list[str]:
        await health(api, admin)  # the first one of a process compiles
        statements.clear()
        await health(api, admin)
        return [text for text in statements if text.lstrip().startswith("SELECT")]

    for connection in await actives(api, crm, "ann"):
        await refresh_fails(api, connection, REFUSED, **WORDS)
    of_one = await reads()
    for connection in await actives(api, crm, *(f"user-{number}" for number in range(30))):
        await refresh_fails(api, connection, REFUSED, **WORDS)
    of_many = await reads()
    assert len(of_many) == len(of_one)
    async with api.worker.read() as tx:
        plans = [await tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}") for text in of_many]
    steps = [tuple(row)[3] for plan in plans for row in plan]
    partial = ("ix_connection_failing", "ix_connection_unwell")  # of those that fail, by either
    assert any(name in step for step in steps for name in partial), steps
    assert any("ix_audit" in step and "object=? AND at=?" in step for step in steps), steps
    assert [step for step in steps if step.startswith(("SCAN connection", "SCAN audit"))] == []
