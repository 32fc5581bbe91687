"""`GET /v1/audit/evidence`: for each control of a framework what the tenant can show now, and what not."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from evergrant_server import audit
from evergrant_server.api.http.call import ApiCall, AuditorCall
from evergrant_server.api.http.models import View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.events import EventType
from evergrant_server.core.questions.evidence import CONTROLS, Framework, Topic, TopicEvidence
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store import Transaction

router = APIRouter(tags=["questions"])

_SHOWN = timedelta(days=90)
_OLD = timedelta(days=365)


class EvidenceView(View):
    """What one query says now: `query` is the route and `command` the command that give it whole."""

    topic: str
    query: str
    command: str
    answer: dict[str, Any]


class ControlView(View):
    """A control: what it is `shown_by`, and what this tenant can't show (`lacks`). It isn't said that a
    control is met."""

    control: str
    title: str
    shown_by: list[EvidenceView]
    lacks: list[str]


class FrameworkEvidenceView(View):
    """The evidence for a framework at one moment; counts of the past are since `since`."""

    framework: Framework
    tenant: str
    at: datetime
    since: datetime
    controls: list[ControlView]


@router.get("/v1/audit/evidence")
async def get_evidence(call: AuditorCall, framework: Annotated[Framework, Query()]) -> FrameworkEvidenceView:
    """For each control of the framework what this tenant can show now, with the queries, and what not."""
    async with call.api.store.read() as tx:
        findings = {topic: await find(tx, call) for topic, find in _FINDERS.items()}
    controls = [
        ControlView(
            control=control.id,
            title=control.title,
            shown_by=[EvidenceView(**_shown(findings[topic])) for topic in control.topics],
            lacks=[line for topic in control.topics for line in findings[topic].lacks],
        )
        for control in CONTROLS[framework]
    ]
    since = call.now - _SHOWN
    return FrameworkEvidenceView(
        framework=framework, tenant=call.tenant, at=call.now, since=since, controls=controls
    )


def _shown(finding: TopicEvidence) -> dict[str, Any]:
    return {name: value for name, value in finding._asdict().items() if name != "lacks"}


# --- what is asked -----------------------------------------------------------------------


async def _access(tx: Transaction, call: ApiCall) -> TopicEvidence:
    unused_for = call.api.settings.unused_permit_after
    counts = await tx.evidence.access(call.tenant, call.now - unused_for)
    unused = await _has_unused(tx, call)
    lacks = _some(
        counts["permits_unused"],
        f"{counts['permits_unused']} permits allowed nothing for {unused_for.days} days, and are there",
        unused,
        "connections that nothing has used for 90 days have a grant: GET /v1/access/unused names them",
    )
    topic = "Which app reaches what, through which permit, and when it was last used"
    return TopicEvidence(topic, "GET /v1/access", "evergrant access report", counts, lacks)


async def _has_unused(tx: Transaction, call: ApiCall) -> bool:
    """Whether one of the tenant's first connections, of ten thousand at most, goes unused."""
    after: str | None = ""
    for _ in range(10):
        unused, after = await tx.uses.unused(call.tenant, call.now - _SHOWN, after or "", 1)
        if unused or after is None:
            return bool(unused)
    return False


async def _changes(tx: Transaction, call: ApiCall) -> TopicEvidence:
    since, settings = call.now - _SHOWN, call.api.settings
    counts = await audit.count_actions(tx, call.tenant, audit.Window(since, access_only=True))
    decisions = await tx.evidence.decisions(call.tenant, since)
    lacks = _some(
        not settings.four_eyes,
        "dangerous commands need no second admin: EVERGRANT_FOUR_EYES is off",
        decisions["requests_approved_by_who_asked"],
        f"{decisions['requests_approved_by_who_asked']} requests were approved by who asked",
        decisions.get("requests_waiting"),
        f"{decisions.get('requests_waiting')} requests wait for a decision",
    )
    answer = {**decisions, "changes": counts, "four_eyes": settings.four_eyes}
    topic = "What changed about who may do what in 90 days, who asked and who approved"
    query = f"GET /v1/access/changes?since={_day(since)}"
    return TopicEvidence(topic, query, f"evergrant access changes --since {_day(since)}", answer, lacks)


async def _keys(tx: Transaction, call: ApiCall) -> TopicEvidence:
    answer: dict[str, Any] = {}
    lacks: list[str] = []
    for purpose in KeyPurpose:
        counts = await tx.tenant_keys.counts(call.tenant, purpose)
        if counts.made_at is None:
            continue
        answer[purpose.value] = {
            "made_at": counts.made_at.isoformat(),
            "replaced": counts.replaced,
            "left_under_replaced": counts.left,
            "keys_of_connections": counts.connection_keys,
        }
        if call.now - counts.made_at > _OLD:
            lacks.append(f"the key for {purpose.value} is older than a year: evergrant keys rotate tenant")
    rotation = call.api.settings.key_rotation
    if rotation is None:
        lacks.append("no rotation is due by itself: EVERGRANT_KEY_ROTATION is empty")
    answer["rotated_after_days"] = None if rotation is None else rotation.days
    topic = "What seals secrets, of each purpose: its age, and what still stands under older keys"
    return TopicEvidence(topic, "GET /v1/keys", "evergrant keys status", answer, tuple(lacks))


async def _ends(tx: Transaction, call: ApiCall) -> TopicEvidence:
    counts = await tx.evidence.ends(call.tenant)
    lacks = _some(
        counts.get("revoked_unknown"),
        f"of {counts.get('revoked_unknown')} revoked connections a token may live on at the provider",
        counts.get("revoked_access_token_only", 0) + counts.get("revoked_not_supported", 0),
        "some providers revoke nothing, or no refresh token: GET /v1/connections?state=revoked says which",
        counts["erased_unconfirmed"],
        f"{counts['erased_unconfirmed']} connections were erased before their provider confirmed",
    )
    topic = "What was revoked and erased, and how far providers have confirmed it"
    return TopicEvidence(topic, "GET /v1/erasures", "evergrant erasures ls", counts, lacks)


async def _authentication(tx: Transaction, call: ApiCall) -> TopicEvidence:
    counts = await tx.evidence.authentication(call.tenant, call.now, call.now - _SHOWN)
    lacks = _some(
        counts["keys_old"],
        f"{counts['keys_old']} API keys are older than 90 days",
        counts["keys_without_an_end"],
        f"{counts['keys_without_an_end']} API keys have no end",
        counts.get("integrations_bound_by_none"),
        f"{counts.get('integrations_bound_by_none')} integrations bind no consent to its person",
        not counts["people_log_in"],
        "nobody administers as a person: admins and auditors share the keys of apps",
    )
    topic = "How apps and people prove who they are, and how consents are bound to their person"
    return TopicEvidence(topic, "GET /v1/apps, GET /v1/integrations", "evergrant apps ls", counts, lacks)


async def _monitoring(tx: Transaction, call: ApiCall) -> TopicEvidence:
    since, rules = call.now - _SHOWN, call.api.settings.detection_rules
    noticed = await tx.detections.count_since(call.tenant, since)
    listeners = await tx.evidence.listeners(call.tenant, EventType.DETECTED)
    checkpoint = await tx.checkpoints.newest()
    signed_at = None if checkpoint is None else checkpoint.at.isoformat()
    verified = await audit.newest_record(tx, call.tenant, call.tenant, AuditAction.LOG_VERIFIED)
    off = [name for name, value in vars(rules).items() if not value]
    lacks = _some(
        not listeners,
        "no webhook gets detection.raised: what is noticed waits for somebody to look",
        off,
        f"detection is off for {', '.join(off)}",
        signed_at is None,
        "no checkpoint of the log is signed: a worker signs one within seconds",
        verified is None or verified.at < since,
        "nobody had the log verified: POST /v1/questions `log`, evergrant audit verify",
        verified is not None and not verified.detail.get("ok"),
        "the last verification found a record that isn't good: evergrant audit verify names it",
    )
    answer = {
        "noticed": noticed,
        "webhooks_that_get_it": listeners,
        "checkpoint_signed_at": signed_at,
        "log_verified_at": None if verified is None else verified.at.isoformat(),
    }
    topic = "What was noticed in 90 days of uses that are unlike those before"
    query = f"GET /v1/detections?since={_day(since)}"
    return TopicEvidence(topic, query, f"evergrant detections --since {_day(since)}", answer, lacks)


async def _incidents(tx: Transaction, call: ApiCall) -> TopicEvidence:
    counts, ends = await tx.evidence.records(call.tenant), await tx.evidence.ends(call.tenant)
    incidents = await tx.evidence.incidents(call.tenant, call.now - _OLD)
    answer = {
        **incidents,
        "questions_about_incidents": counts["questions_about_incidents"],
        "revoking": ends["revoking"],
        **{name: number for name, number in ends.items() if name.startswith("revoked_")},
    }
    lacks = _some(
        not incidents,
        "no incident, and no drill of one, in a year: evergrant incident plan",
        ends["revoking"],
        f"{ends['revoking']} revocations aren't confirmed yet",
    )
    topic = "Incidents and drills of a year with their signed reports, and how far revocations are"
    return TopicEvidence(topic, "GET /v1/incidents", "evergrant incident ls", answer, lacks)


async def _records(tx: Transaction, call: ApiCall) -> TopicEvidence:
    counts = await tx.evidence.records(call.tenant)
    oldest = await audit.page(tx, call.tenant, limit=1)
    answer = {
        **counts,
        "kept_for_days": call.api.settings.audit_retention.days,
        "oldest_record_at": oldest[0].at.isoformat() if oldest else None,
    }
    lacks = _some(not counts["legal_holds_active"], "no legal hold is set: records go at their age")
    topic = "How long records are kept, what is held, and what a person was told"
    return TopicEvidence(topic, "GET /v1/legal-holds", "evergrant holds ls", answer, lacks)


_FINDERS: Mapping[Topic, Callable[[Transaction, ApiCall], Awaitable[TopicEvidence]]] = {
    Topic.ACCESS: _access,
    Topic.CHANGES: _changes,
    Topic.KEYS: _keys,
    Topic.ENDS: _ends,
    Topic.AUTHENTICATION: _authentication,
    Topic.MONITORING: _monitoring,
    Topic.INCIDENTS: _incidents,
    Topic.RECORDS: _records,
}


def _some(*pairs: object) -> tuple[str, ...]:
    """The texts behind the conditions that hold: condition, text, condition, text."""

    def texts() -> Iterator[str]:
        for condition, text in zip(pairs[::2], pairs[1::2], strict=True):
            if condition:
                yield str(text)

    return tuple(texts())


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%dT00:00:00Z}"
