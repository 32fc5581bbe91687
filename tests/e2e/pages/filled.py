"""A small tenant with something of everything that a page or the console shows, as of one afternoon."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from evergrant_server import audit
from evergrant_server.audit.filing import file_leases
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegations import Reach
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import AccountOption, FollowUp
from evergrant_server.core.decisions import AccessRequest, AccessRequestKind
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import (
    AccessRequestId,
    ConnectionId,
    KeyRotationId,
    new_id,
)
from evergrant_server.core.integrations import Integration, IntegrationState
from evergrant_server.core.key_rotation import RotationCommand, RotationKind, RotationStep
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.keys import KeyRotationProgress, KeyRotationStart
from evergrant_server.core.messages.names import key_rotation_workflow_id
from tests.e2e.pages.filled_campaigns import fill_campaigns
from tests.e2e.pages.filled_incidents import fill_bulk_orders, fill_incidents, fill_leavers
from tests.e2e.pages.filled_questions import questions_of
from tests.e2e.pages.filled_rights import fill_rights
from tests.e2e.pages.filled_work import fill_work
from tests.fakes.api import TENANT, Api
from tests.fakes.rows import a_delegation

NOON = datetime(2026, 3, 18, 12, 0, 0, tzinfo=UTC)
ISSUER = "https://login.acme.example"
ALL = (Action.TOKEN, Action.CONNECT, Action.ADMIN)
ACCOUNTS = (
    AccountOption(id="acc-1", label="Acme Holding"),
    AccountOption(id="acc-2", label="Acme Research and Development GmbH & Co. KG, Niederlassung Süd"),
)


@dataclass
class Filled:
    """The ids that views need, and the key of an app that may do everything."""

    key: str
    told: ConnectionId
    choosing: ConnectionId
    failing: ConnectionId
    pending: ConnectionId
    request: str
    removal: str
    key_id: str
    call: str
    incident: str
    bulk: str
    leaver: str
    campaign: str
    uses: str
    about: str
    rehearsed: str
    ordered: str
    client: str
    family: str
    session: str
    record: str


async def fill(api: Api) -> Filled:
    """Whatever the API's clock says; it ends at the afternoon of `NOON`."""
    api.clock.advance((NOON - timedelta(days=40) - api.clock.now()).total_seconds())
    key = await api.app_with("console", *ALL)
    made = {it.name: it for it in [it async for it in _integrations(api)]}
    report = await _apps(api, key)
    told = await _told(api, made["crm"])
    choosing, failing, pending = await _others(api, made)
    request, removal, key_id = await _requests(api, report)
    api.link.events, api.link.next_at = {None: _events()}, NOON + timedelta(minutes=3)
    _at(api, NOON)
    _rotations(api)
    call = await _agent(api, key, told)
    uses, about = await questions_of(api, key, told, NOON)
    rights = await fill_rights(api, key, made["crm"], NOON)
    stream = {"url": "https://siem.example.com/in?source=evergrant", "format": "ocsf"}
    assert (await api.call("PUT", "/v1/audit/streams/siem", key, json=stream)).is_success
    await file_leases(api.worker)
    return Filled(
        key,
        told.id,
        choosing.id,
        failing.id,
        pending.id,
        request,
        removal,
        key_id,
        call,
        await fill_incidents(api, (told, choosing, failing, pending), NOON),
        await fill_bulk_orders(api, (told, choosing, failing, pending), NOON),
        await fill_leavers(api, (told, choosing, failing, pending), NOON),
        await fill_campaigns(api, (told, choosing, failing, pending), NOON),
        uses,
        about,
        *await fill_work(api, key, NOON),
        *rights,
    )


def _rotations(api: Api) -> None:
    """One of the tenant's keys that is done, and one of its connections' that is under way."""
    moved, total = 8_425, 20_000
    ended = {"total": total, "moved": total, "replaced": 3, "destroyed": 3, "done": True}
    done = KeyRotationProgress(step=RotationStep.DESTROY, **ended)
    under_way = KeyRotationProgress(step=RotationStep.REPLACE, total=total, moved=moved, replaced=moved)
    for kind, progress in ((RotationKind.TENANT, done), (RotationKind.CONNECTION, under_way)):
        api.link.rotations[key_rotation_workflow_id(TENANT, kind)] = KeyRotationStart(
            tenant=TENANT,
            rotation_id=KeyRotationId(new_id("rot")),
            kind=kind,
            command=RotationCommand.ROTATE,
            begun_at=NOON - timedelta(minutes=4),
            context=RequestContext(by="app:console"),
            progress=progress,
        )


def _at(api: Api, moment: datetime) -> None:
    api.clock.advance((moment - api.clock.now()).total_seconds())


async def _integrations(api: Api) -> Any:
    day = timedelta(days=1)
    code = {"binding": "app", "default_scopes": ("repo", "read:user")}
    yield await api.integration("crm", provider="hubspot", client_id="5b1c2f0e-2f55-4f0c", binding="app")
    yield await api.integration(
        "calendar", provider="google", client_id="8241-7f3.apps.example", binding="app"
    )
    yield await api.integration("code", provider="github", client_id="Iv1.9d0b7a21c55e", **code)
    ends = {"client_secret_expires_at": NOON + 9 * day, "binding": "app"}
    yield await api.integration("files", provider="dropbox", client_id="k2v9q", **ends)
    books = await api.integration("accounting", provider="xero", client_id="77A1", binding="app")
    yield await _refused(api, books)
    problem = f"{ISSUER}/.well-known/openid-configuration names another issuer: {ISSUER}/"
    broken = {"issuer": ISSUER, "state": IntegrationState.FAILED, "problem": problem}
    yield await api.integration("erp", provider="generic", client_id="evergrant", **broken)
    yield await api.integration("tickets", provider="gitlab", client_id="tickets-client")


async def _refused(api: Api, made: Integration) -> Integration:
    """Whose provider refuses the newest client secret."""
    refused = made.model_copy(update={"secret_refused_at": NOON - timedelta(days=2)})
    async with api.worker.write() as tx:
        return await tx.integrations.put(refused, None, expected=made.revision)


async def _apps(api: Api, key: str) -> str:
    """Two apps with permits, of which the key of one is returned, and one that is disabled."""

    async def put(path: str, **body: Any) -> None:
        answer = await api.call("PUT", path, key, json=body)
        assert answer.is_success, answer.text

    crm = {"integration": "crm", "purpose": "nightly synchronisation", "owner": "sales platform"}
    await put("/v1/apps/crm-sync", return_to=["https://crm.acme.example/connected"], lease_limit=600)
    await put("/v1/apps/crm-sync/permits/use", actions=["token", "connect"], **crm)
    deny = {"effect": "deny", "mode": "observe", "reason": "no deletions, from May on"}
    delete = {"integration": "crm", "actions": ["token"], "scopes": ["crm.objects.contacts.delete"]}
    await put("/v1/apps/crm-sync/permits/no-deletions", **delete, **deny)
    weekly = {"integration": "calendar", "actions": ["token"], "subjects": ["ann@*"]}
    report = await api.app_with("report")
    ends = {"expires_at": (NOON + timedelta(days=12)).isoformat(), "sources": ["10.20.0.0/16"]}
    await put("/v1/apps/report/permits/weekly-report", scope_ceiling=["calendar.readonly"], **weekly, **ends)
    await put("/v1/apps/an-importer-that-was-replaced", disabled=True)
    return report


async def _record(api: Api, id: str, action: AuditAction, at: datetime, by: str, **detail: object) -> None:
    context = RequestContext(by=by)
    entry = AuditEntry(tenant=TENANT, at=at, action=action, object=id, context=context, detail=detail)
    async with api.worker.write() as tx:
        await audit.append(tx, entry)


async def _told(api: Api, crm: Integration) -> Connection:
    """A connection with a story: consent, leases, an outage, the recovery."""
    scopes = ("crm.objects.contacts.read", "crm.objects.deals.read")
    begun, said = NOON - timedelta(hours=5), {"scopes": scopes, "requested_scopes": scopes}
    _at(api, begun)
    row = await api.active(crm, subject="ann@acme.example", lifetime=1800, **said)
    app, worker = "app:crm-sync", "worker"
    for minutes, action, by, detail in (
        (-3, AuditAction.CONNECTION_CREATED, app, {"integration": "crm", "scopes": list(scopes)}),
        (-2, AuditAction.CONSENT_STARTED, "subject", {}),
        (-1, AuditAction.CONSENT_CONFIRMED, app, {}),
        (0, AuditAction.GRANT_INSTALLED, worker, {"generation": 1, "scopes": list(scopes)}),
        *((5 + 4 * i, AuditAction.LEASE_ISSUED, app, {"generation": 1}) for i in range(5)),
        (28, AuditAction.GRANT_REFRESHED, worker, {"generation": 2}),
        (31, AuditAction.LEASE_ISSUED, app, {"generation": 2}),
        (58, AuditAction.REFRESH_FAILED, worker, {"reason": "provider_error", "status": 503}),
        (63, AuditAction.CONNECTION_FAILING, worker, {"reason": "provider_error", "repairer": "time"}),
        (74, AuditAction.GRANT_REFRESHED, worker, {"generation": 3}),
        (74, AuditAction.CONNECTION_RECOVERED, worker, {"reason": "provider_error"}),
        *((76 + 30 * i, AuditAction.LEASE_ISSUED, app, {"generation": 3}) for i in range(3)),
        (275, AuditAction.GRANT_REFRESHED, worker, {"generation": 4}),
        (280, AuditAction.LEASE_ISSUED, "app:report", {"generation": 4}),
    ):
        await _record(api, row.id, action, begun + timedelta(minutes=minutes), by, **detail)
    _at(api, NOON - timedelta(minutes=25))
    for number in (2, 3, 4):
        row = await api.install(row, f"at-{number}", scopes=scopes, lifetime=1800)
    return row


async def _others(api: Api, made: dict[str, Integration]) -> tuple[Connection, Connection, Connection]:
    """One in each state, and some more."""
    day, hour = timedelta(days=1), timedelta(hours=1)
    _at(api, NOON - 20 * day)
    for name in ("bo", "cyd", "dana", "eli", "femi"):
        await api.active(made["calendar"], f"at-{name}", subject=f"{name}@acme.example")
    ended = await api.active(made["code"], subject="robot", label="release")
    await api.change(ended, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, NOON - 3 * hour))
    await _failures_by_cause(api, made["code"])
    leaving = await api.active(made["files"], subject="gil@acme.example")
    await api.change(leaving, lambda it: it.revocation_requested("left the company", NOON - hour))
    long = "maximiliane.von-und-zu-hohenstein@a-subsidiary-with-a-long-name.example"
    await api.active(made["files"], subject=long, label="shared-documents")
    failing = await api.active(made["tickets"], subject="hal@acme.example")
    for minutes in (50, 40, 30, 20, 5):
        at = NOON - timedelta(minutes=minutes)
        failed: dict[str, Any] = {"reason": ErrorCode.PROVIDER_ERROR.value}
        failed["provider_said"] = {"status": 400, "error": "session_gone", "description": "E-4711"}
        failed["undecided"] = {"since": (NOON - timedelta(minutes=50)).isoformat()}
        await _record(api, failing.id, AuditAction.REFRESH_FAILED, at, "worker", **failed)
        failing = await api.change(
            failing, lambda it, at=at: it.refresh_failed(ErrorCode.PROVIDER_ERROR, at, token_over=False)
        )
    choosing = await api.active(made["accounting"], subject="books@acme.example")
    async with api.worker.write() as tx:
        grant = await tx.grants.get(TENANT, choosing.id)
        assert grant is not None
        waits = choosing.model_copy(update={"follow_up": FollowUp.CHOOSING})
        choosing = await tx.connections.replace(waits, expected=choosing.revision)
        await tx.grants.update_facts(choosing, grant.model_copy(update={"options": ACCOUNTS}))
    _at(api, NOON - timedelta(minutes=12))
    pending = await api.connection(made["crm"], subject="ida@acme.example")
    over = await api.connection(made["code"], subject="jo@acme.example")
    await api.change(over, lambda it: it.consent_expired(NOON - hour))
    return choosing, failing, pending


async def _failures_by_cause(api: Api, code: Integration) -> None:
    """Connections that fail for one cause, in the provider's words, of which one is a long one."""
    long = "The client secret that was presented has expired; rotate it in the developer settings of the app."
    words = {"status": 401, "error": "incorrect_client_credentials", "description": long}
    refused = ErrorCode.CLIENT_REJECTED
    for minutes, subject in ((95, "kai@acme.example"), (90, "lou@acme.example"), (85, "mo@acme.example")):
        row, at = await api.active(code, subject=subject), NOON - timedelta(minutes=minutes)
        failed = {"reason": refused.value, "provider_said": words if minutes < 95 else {"status": 500}}
        await _record(api, row.id, AuditAction.REFRESH_FAILED, at, "worker", **failed)
        await api.change(row, lambda it, at=at: it.refresh_failed(refused, at, token_over=True))


async def _requests(api: Api, report: str) -> tuple[str, str, str]:
    """What apps ask for, and what was decided. The ids of two that wait, and of a key."""
    _at(api, NOON - timedelta(hours=3))
    admin = await api.app_with("security", Action.ADMIN)

    async def asked(reason: str, **permit: Any) -> str:
        body = {"reason": reason, "permit": {"actions": ["token"], **permit}, "lifetime": 8 * 3600}
        answer = await api.post("/v1/access-requests", report, body)
        assert answer.is_success, answer.text
        return answer.json()["id"]

    for decision, note in (("approve", "until the audit is over"), ("deny", "use the shared report")):
        id = await asked(f"to see what {decision} does", integration="files", subjects=[decision])
        answer = await api.post(f"/v1/access-requests/{id}/{decision}", admin, {"note": note})
        assert answer.is_success, answer.text
    reason = "Reconcile the invoices of May with what was delivered."
    waits = await asked(reason, integration="crm", subjects=["ann@acme.example"])
    made = await api.post("/v1/apps/crm-sync/keys", admin)
    assert made.is_success, made.text
    app, now = await api.app_named("crm-sync"), api.clock.now()
    removal = AccessRequest(
        tenant=TENANT,
        id=AccessRequestId(new_id("req")),
        app_id=app.id,
        kind=AccessRequestKind.REMOVAL,
        permit_name="use",
        permit={"integration": "crm", "actions": ["token", "connect"], "owner": "sales platform"},
        reason="It has allowed nothing for 90 days.",
        requested_by="schedule",
        created_at=now,
        decide_by=now + timedelta(days=30),
    )
    async with api.worker.write() as tx:
        await tx.access_requests.add(removal)
    return waits, removal.id, made.json()["id"]


async def _agent(api: Api, key: str, told: Connection) -> str:
    """An agent that asks for a call. Returns the call's id."""
    ends_at = (NOON + timedelta(days=20)).isoformat()
    agent = {"purpose": "answers questions about invoices", "ends_at": ends_at}
    use = {"integration": "crm", "actions": ["token"]}
    calls = {
        "integration": "crm",
        "actions": ["proxy"],
        "methods": ["POST"],
        "paths": ["/crm/v3/objects/notes"],
    }
    permits = {
        "use": use,
        "notes": {**calls, "call_approval": True, "expires_at": (NOON + timedelta(days=5)).isoformat()},
        "no-payroll": {"integration": "*", "subjects": ["payroll-*"], "actions": ["token"], "effect": "deny"},
    }
    put = {f"apps/invoice-helper/permits/{name}": permit for name, permit in permits.items()}
    for path, body in {"agents/invoice-helper": agent, **put}.items():
        made = await api.call("PUT", f"/v1/{path}", key, json=body)
        assert made.is_success, made.text
    own = (await api.post("/v1/apps/invoice-helper/keys", key)).json()["key"]
    reach = Reach(integrations=("crm",), scopes=("read:invoices",))
    helper = await api.app_named("invoice-helper")
    async with api.worker.write() as tx:
        await tx.delegations.add(a_delegation(helper, "key_1", "ann@acme.example", NOON, reach=reach))
    asked = {
        "connection_id": told.id,
        "method": "POST",
        "url": "https://api.hubapi.com/crm/v3/objects/notes",
        "body": json.dumps({"properties": {"hs_note_body": "Invoice 2026-114 was paid."}}, indent=2),
        "reason": "Ann asked to have the payment noted.",
    }
    waits = await api.post("/v1/call-approvals", own, asked)
    assert waits.is_success, waits.text
    return waits.json()["id"]


def _events() -> list[dict[str, Any]]:
    """The workflow's own, as Temporal tells them."""
    at = NOON - timedelta(minutes=26)
    told: Iterable[tuple[str, dict[str, Any]]] = (
        ("WORKFLOW_EXECUTION_UPDATE_ACCEPTED", {"acceptedRequest": {"input": {"name": "ensure_fresh"}}}),
        ("ACTIVITY_TASK_SCHEDULED", {"activityType": {"name": "refresh_grant"}}),
        ("ACTIVITY_TASK_COMPLETED", {"scheduledEventId": "2"}),
        ("WORKFLOW_EXECUTION_UPDATE_COMPLETED", {}),
    )
    return [
        {
            "eventId": str(number),
            "eventTime": (at + timedelta(seconds=number)).isoformat(),
            "eventType": f"EVENT_TYPE_{kind}",
            f"{kind.title().replace('_', '')}EventAttributes": attributes,
        }
        for number, (kind, attributes) in enumerate(told, 1)
    ]
