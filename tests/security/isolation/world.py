"""A tenant with one of everything, and each name and id in it."""

import base64
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from joserfc import jwk
from temporalio.api.common.v1 import Payload
from temporalio.converter import WorkflowSerializationContext

from evergrant_server import audit
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.binding import hash_confirm_code
from evergrant_server.core.connections.bulk import BulkAction, BulkOrder
from evergrant_server.core.connections.campaigns import Campaign
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.erasure import Erasure, ErasureState, LegalHold, TargetKind
from evergrant_server.core.connections.incidents import Incident, IncidentKind, IncidentState
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.export import Export, ExportStatus
from evergrant_server.core.ids import (
    BulkId,
    DetectionId,
    DirectoryUserId,
    ErasureId,
    IncidentId,
    IntegrationId,
    LegalHoldId,
    QuestionId,
    Tenant,
    is_id,
    new_id,
)
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.people.leavers import DirectoryUser, Leaver
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.core.questions.detection import Detection, DetectionKind
from evergrant_server.core.questions.questions import AnswerPage, Question, QuestionKind
from evergrant_server.core.secret import Secret
from tests.fakes.api import Api
from tests.fakes.rows import a_consent, a_definition, a_delegation, a_family, an_approval
from tests.security.people import put_session

_SIGNING_KEY = jwk.ECKey.generate_key("P-256").as_dict(private=False, alg="ES256")
A_CREDENTIAL = {"method": "private_key_jwt", "parameters": {"jwks": {"keys": [_SIGNING_KEY]}}}
PUBLIC_KEY = jwk.OKPKey.generate_key("X25519").as_dict(private=False)
_NAMED = (
    "integration",
    "issuer",
    "app",
    "agent",
    "permit",
    "credential",
    "webhook",
    "audit_stream",
    "provider",
    "subject",
    "label",
    "idempotency_key",
    "trusted_issuer",
    "delegation_rule",
    "successor",
)
ISSUER = Endpoints(
    issuer="https://login.example",
    authorization_endpoint="https://login.example/authorize",
    token_endpoint="https://login.example/token",
    jwks_uri="https://login.example/keys",
)
# of the provider's definition; each request of the matrix needs its own
_VERSIONS = (DefinitionState.ACTIVE, DefinitionState.STAGED, DefinitionState.WAITING, DefinitionState.WAITING)


def absent(values: Mapping[str, str]) -> dict[str, str]:
    """A name or id of the same form and length that no tenant has, in place of each value."""
    return {name: _absent(name, value) for name, value in values.items()}


def _absent(name: str, value: str) -> str:
    if name == "story":
        workflow = base64.b64decode(value).decode()
        return _base64(f"{workflow.rpartition(':')[0]}:{new_id('con')}".encode())
    return new_id(value[:3]) if is_id(value, value[:3]) else f"x{value[1:]}"


async def a_world(api: Api, tenant: Tenant) -> dict[str, str]:
    """What the tenant has: each value stands in no other tenant's world."""
    own = {name: f"{name.replace('_', '-')}-of-{tenant}" for name in _NAMED}
    own["confirm_code"] = f"confirm-code-of-{tenant}"
    own["file"] = f"provider-of-{tenant}.svg"
    now = api.clock.now()
    integration = await api.integration(own["integration"], tenant=tenant)
    connection = await api.active(integration, f"at-of-{tenant}", subject=own["subject"], label=own["label"])
    boss = await api.app_with(f"boss-of-{tenant}", *Action, tenant=tenant)
    await api.integration("second", tenant=tenant)  # lists have a next page
    await api.integration(own["successor"], tenant=tenant)
    await api.integration(own["issuer"], tenant=tenant, issuer=ISSUER.issuer, endpoints=ISSUER)

    async def made(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        sent = {"Idempotency-Key": own["idempotency_key"]} if body and "subject" in body else {}
        answer = await api.call(method, path, boss, json=body or {}, headers=sent)
        assert answer.is_success, (path, answer.text)
        return answer.json()

    app = f"/v1/apps/{own['app']}"
    await made("PUT", app)
    await made("PUT", f"{app}/permits/{own['permit']}", {"integration": "*", "actions": ["connect"]})
    await made("PUT", f"{app}/credentials/{own['credential']}", A_CREDENTIAL)
    key = await made("POST", f"{app}/keys")
    ends_at = (now + timedelta(days=30)).isoformat()
    for agent in (own["agent"], "second-agent"):
        await made("PUT", f"/v1/agents/{agent}", {"purpose": "a test", "ends_at": ends_at})
    for webhook in (own["webhook"], "second"):
        await made("PUT", f"/v1/webhooks/{webhook}", {"url": f"https://hooks.example.com/{tenant}"})
    for stream in (own["audit_stream"], "second"):
        await made("PUT", f"/v1/audit/streams/{stream}", {"url": f"https://siem.example.com/{tenant}"})
    for issuer in (own["trusted_issuer"], "second"):
        await made("PUT", f"/v1/issuers/{issuer}", {"kind": "oidc", "issuer": f"https://{issuer}.example"})
    rule = {
        "issuer": own["trusted_issuer"],
        "token_type": "id_token",
        "audience": "a",
        "actors": [own["app"]],
    }
    for name in (own["delegation_rule"], "second"):
        await made("PUT", f"/v1/delegation-rules/{name}", rule)
    ping, _ = [await made("POST", f"/v1/webhooks/{own['webhook']}/test") for _ in range(2)]
    receiver = {"kind": "slack", "secret": f"signing-secret-of-{tenant}"}
    at = f"/v1/integrations/{own['integration']}/security-events"
    receiver_id = (await made("PUT", at, receiver))["id"]
    waits = {"integration": own["integration"], "subject": f"waits-in-{tenant}"}
    waiting = await made("POST", "/v1/connections", waits)
    asked = {"permit": {"integration": own["integration"], "actions": ["token"]}, "reason": "a test"}
    requested = await made("POST", "/v1/access-requests", {**asked, "app": own["app"]})
    wanted = {"connection_id": connection.id, "method": "DELETE", "url": f"https://api.example/{tenant}"}
    to_call = await made("POST", "/v1/call-approvals", {**wanted, "reason": "a test"})
    await made("POST", f"/v1/agents/{own['agent']}/stop")
    async with api.worker.write() as tx:
        for version, state in enumerate(_VERSIONS, 1):
            facts = {"state": state, "version": version}
            await tx.definitions.add(a_definition(tenant, document(own["provider"]), now, **facts))
        asking = await tx.access.app_by_name(tenant, own["app"])
        assert asking is not None
        approval = await tx.approvals.put(an_approval(asking, now), expected=None)
        code = {"confirm_hash": hash_confirm_code(own["confirm_code"]), "app_id": asking.id}
        more = {"status": ConsentStatus.CONFIRMING, "confirm_by": now + timedelta(hours=1), **code}
        await tx.consents.add(a_consent(connection, now, **more), Secret(f"link-of-{tenant}"))
        delegations = [a_delegation(asking, key["id"], own["subject"], now) for _ in range(2)]
        for one in delegations:  # lists have a next page
            await tx.delegations.add(one)
        families = [a_family(asking, own["subject"], now) for _ in range(2)]
        for one in families:
            await tx.token_families.add(one)
        export = _export(tenant, now)
        await tx.exports.add(export)
        erasures = [an_erasure(tenant, now) for _ in range(2)]
        for erasure in erasures:
            await tx.erasures.add(erasure)
        incidents = [an_incident(tenant, now) for _ in range(2)]
        offboardings = [an_offboarding(tenant, now) for _ in range(2)]
        for offboarding in offboardings:
            await tx.incidents.add(offboarding)
            await tx.leavers.add(Leaver(tenant=tenant, id=offboarding.id, subject=f"left-{tenant}"))
        campaigns = [a_campaign(tenant, now) for _ in range(2)]
        for campaign, order in campaigns:
            await tx.incidents.add(order)
            await tx.campaigns.add(campaign)
        await tx.directory_users.put(a_user(tenant, now), expected=None)
        for incident in incidents:
            await tx.incidents.add(incident)
        bulk_orders = [a_bulk_order(tenant, now) for _ in range(2)]
        for order in bulk_orders:
            await tx.bulk_orders.add(order)
        holds = [a_hold(tenant, now) for _ in range(2)]
        for hold in holds:
            await tx.legal_holds.add(hold)
        questions = [a_question(tenant, now) for _ in range(2)]
        for question in questions:
            await tx.questions.add(question)
            page = AnswerPage()
            for number in range(2):
                page.add("record", None, {"object": f"of-{tenant}", "number": number})
            await tx.questions.write_page(question, page, now)
            await tx.detections.add(a_detection(tenant, now))
    item = {"integration": own["integration"], "subject": f"imported-{tenant}", "access_token": "a"}
    rehearsed = await made("POST", "/v1/imports", {"items": [{**item, "never_expires": True}]})
    await made("PUT", "/v1/admin-login", {"integration": own["issuer"], "roles": {"auditor": ["board"]}})
    await made("PUT", "/v1/offboarding-rule", {"subject_from": "user_name"})
    await made("PUT", "/v1/client-login", {"app": own["app"], "integration": own["issuer"]})
    client = {"name": f"of-{tenant}", "redirect_uris": [f"https://{tenant}.example/cb"]}
    oauth_client = await made("POST", "/v1/oauth-clients", client)
    record = f"shard-of-{tenant}"  # each tenant's other shards are named alike
    async with api.worker.write() as tx:
        await audit.append(tx, an_entry(tenant, now), shard=record)
    await HeadsLog(api.worker, api.clock, "evergrant.example/audit").advance()
    session_id, _ = await put_session(api, tenant, PersonRole.AUDITOR)
    workflow = connection_workflow_id(tenant, connection.id)
    context = WorkflowSerializationContext(api.parts.settings.temporal_namespace, workflow)
    (sealed,) = await api.link.codec.with_context(context).encode([Payload(data=b"{}")])
    return own | {
        "audit_record": f"{record}/0",
        "audit_place": f"{record}:0",
        "story": _base64(workflow.encode()),
        "sealed_payload": _base64(sealed.data),
        "session_id": session_id,
        "oauth_client_id": oauth_client["id"],
        "family_id": min(it.id for it in families),
        "connection_id": connection.id,
        "link": waiting["connect_url"].rpartition("/")[2],
        "key_id": key["id"],
        "delivery_id": ping["id"],
        "approval_id": approval.id,
        "request_id": requested["id"],
        "call_approval_id": to_call["id"],
        "receiver_id": receiver_id,
        "export_id": export.id,
        "erasure_id": min(erasure.id for erasure in erasures),
        "question_id": min(question.id for question in questions),
        "incident_id": min(incident.id for incident in incidents),
        "campaign_id": min(campaign.id for campaign, _ in campaigns),
        "offboarding_id": min(offboarding.id for offboarding in offboardings),
        "bulk_id": min(order.id for order in bulk_orders),
        "hold_id": min(hold.id for hold in holds),
        "import_id": rehearsed["id"],
        "delegation_id": min(it.id for it in delegations),
        "integration_id": integration.id,
    }


def document(name: str) -> dict[str, Any]:
    """A provider's definition."""
    return {
        "name": name,
        "display_name": name,
        "auth_modes": ["authorization_code"],
        "authorization_endpoint": "https://idp.example/authorize",
        "token_endpoint": "https://idp.example/token",
    }


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def an_entry(tenant: Tenant, now: datetime) -> AuditEntry:
    action, context = AuditAction.QUESTION_ASKED, RequestContext(by="app:boss")
    return AuditEntry(tenant=tenant, at=now, action=action, object=f"of-{tenant}", context=context)


def an_erasure(tenant: Tenant, now: datetime) -> Erasure:
    facts = {"by": "app:boss", "reason": f"left-{tenant}", "created_at": now, "waits_until": now}
    ends = {"state": ErasureState.DONE, "finished_at": now}
    id = ErasureId(new_id("era"))
    return Erasure(tenant=tenant, id=id, kind=TargetKind.SUBJECT, target="", target_hash=id, **facts, **ends)  # type: ignore[arg-type]  # facts of each type


def an_incident(tenant: Tenant, now: datetime) -> Incident:
    """That goes on, of no connection."""
    id, kind = IncidentId(new_id("inc")), IncidentKind.BREACH
    facts = {"by": "app:boss", "reason": f"breached-{tenant}", "created_at": now, "waits_until": now}
    return Incident(tenant=tenant, id=id, kind=kind, **facts)  # type: ignore[arg-type]  # facts of each type


def an_offboarding(tenant: Tenant, now: datetime) -> Incident:
    """Of somebody without connections, which can be undone for a day."""
    id, until = IncidentId(new_id("inc")), now + timedelta(days=1)
    facts = {"by": "app:boss", "reason": f"left-{tenant}", "created_at": now, "waits_until": until}
    held = {"state": IncidentState.HOLDING, "held_until": until, "person": f"hash-of-{id}"}
    return Incident(tenant=tenant, id=id, kind=IncidentKind.LEAVER, **facts, **held)  # type: ignore[arg-type]  # facts of each type


def a_campaign(tenant: Tenant, now: datetime) -> tuple[Campaign, Incident]:
    """Of an integration that is gone, which can be undone for a day."""
    id, until = IncidentId(new_id("inc")), now + timedelta(days=1)
    facts = {"by": "app:boss", "reason": f"moved-{tenant}", "created_at": now, "waits_until": until}
    held = {"state": IncidentState.HOLDING, "held_until": until, "integration": f"gone-{id[4:12]}"}
    order = Incident(tenant=tenant, id=id, kind=IncidentKind.CAMPAIGN, **facts, **held)  # type: ignore[arg-type]  # facts of each type
    gone = {"older": IntegrationId(new_id("int")), "newer": IntegrationId(new_id("int"))}
    waves = {"newer_name": "gone", "wave_size": 10, "every_s": 60.0, "wave_at": until}
    return Campaign(tenant=tenant, id=id, **gone, **waves), order  # type: ignore[arg-type]  # facts of each type


def a_user(tenant: Tenant, now: datetime) -> DirectoryUser:
    id, name = DirectoryUserId(new_id("usr")), f"left-{tenant}"
    moments = {"created_at": now, "changed_at": now}
    return DirectoryUser(tenant=tenant, id=id, user_name=name, user_key=name, subject=name, **moments)


def a_bulk_order(tenant: Tenant, now: datetime) -> BulkOrder:
    """That goes on, of no connection."""
    id, action = BulkId(new_id("blk")), BulkAction.REFRESH
    facts = {"by": "app:boss", "reason": f"ordered-in-{tenant}", "created_at": now, "waits_until": now}
    return BulkOrder(tenant=tenant, id=id, action=action, **facts)  # type: ignore[arg-type]  # facts of each type


def a_hold(tenant: Tenant, now: datetime) -> LegalHold:
    """On somebody who has no connection."""
    id = LegalHoldId(new_id("hld"))
    who = {"kind": TargetKind.SUBJECT, "target": f"held-in-{tenant}", "target_hash": id}
    return LegalHold(tenant=tenant, id=id, **who, by="app:boss", reason="a case", created_at=now)  # type: ignore[arg-type]  # facts of each type


def a_question(tenant: Tenant, now: datetime) -> Question:
    return Question(
        tenant=tenant,
        id=QuestionId(new_id("qst")),
        kind=QuestionKind.SUBJECT,
        subject=f"asked-about-in-{tenant}",
        by="app:boss",
        trace_id="",
        created_at=now,
        expires_at=now + timedelta(days=7),
    )


def a_detection(tenant: Tenant, now: datetime) -> Detection:
    id, facts = DetectionId(new_id("det")), {"network": f"of-{tenant}"}
    return Detection(
        tenant=tenant, id=id, kind=DetectionKind.NEW_NETWORK, object=f"app-of-{tenant}", at=now, facts=facts
    )


def _export(tenant: Tenant, now: Any) -> Export:
    facts: dict[str, Any] = {
        "by": "app:boss",
        "trace_id": "",
        "created_at": now,
        "status": ExportStatus.READY,
    }
    recipient = {name: str(value) for name, value in PUBLIC_KEY.items()}
    ends = now + timedelta(days=1)
    return Export(tenant=tenant, id=new_id("exp"), recipient=recipient, expires_at=ends, **facts)  # type: ignore[arg-type]  # an id is text
