"""Which audit record is which event, and what an event says."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import FAILURES, ErrorCode, Repairer
from evergrant_server.core.events import (
    APP_EVENTS,
    CONNECTION_EVENTS,
    DEFAULT_EVENTS,
    EVENTS_BY_ACTION,
    EventType,
    event_body,
    events_of,
)
from evergrant_server.core.messages.base import RequestContext
from tests.unit.core.lifecycle import steps

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("action", "detail", "expected"),
    [
        (AuditAction.GRANT_INSTALLED, {"generation": 1}, [EventType.CREATED]),
        (AuditAction.GRANT_INSTALLED, {"generation": 1, "imported": True}, [EventType.CREATED]),
        (AuditAction.GRANT_INSTALLED, {"generation": 7}, []),
        (AuditAction.GRANT_REFRESHED, {"generation": 8}, [EventType.REFRESHED]),
        (AuditAction.CONNECTION_FAILING, {}, [EventType.FAILING]),
        (AuditAction.CONNECTION_RECOVERED, {}, [EventType.RECOVERED]),
        (AuditAction.CONNECTION_EXPIRING, {}, [EventType.EXPIRING]),
        (AuditAction.NEEDS_REAUTH, {"reason": ErrorCode.GRANT_REJECTED}, [EventType.NEEDS_REAUTH]),
        (
            AuditAction.NEEDS_REAUTH,
            {"reason": ErrorCode.OUTCOME_UNKNOWN},
            [EventType.NEEDS_REAUTH, EventType.OUTCOME_UNKNOWN],
        ),
        (AuditAction.REVOKED_AT_PROVIDER, {}, [EventType.NEEDS_REAUTH]),
        (AuditAction.REVOKED, {"how": RevocationOutcome.CONFIRMED}, [EventType.REVOKED]),
        (AuditAction.REVOCATION_REQUESTED, {"reason": "left"}, []),
        (AuditAction.REFRESH_FAILED, {"reason": ErrorCode.PROVIDER_ERROR}, []),
        (AuditAction.LEASE_ISSUED, {}, []),
    ],
)
def test_a_record_is_these_events(action: AuditAction, detail: dict[str, Any], expected: list[EventType]):
    assert list(events_of(action, detail)) == expected


def test_every_event_of_connections_comes_from_some_record():
    reasons = ({"generation": 1}, {"reason": ErrorCode.OUTCOME_UNKNOWN})
    told = {type for action in EVENTS_BY_ACTION for detail in reasons for type in events_of(action, detail)}
    assert told == {*CONNECTION_EVENTS, *APP_EVENTS}
    assert set(CONNECTION_EVENTS) - set(DEFAULT_EVENTS) == {EventType.REFRESHED}


def said(
    state: LifecycleState,
    why: ErrorCode | None = None,
    type: EventType = EventType.NEEDS_REAUTH,
    **detail: Any,
) -> dict[str, Any]:
    names = {"provider": "hubspot", "subject": "alice"}
    connection = steps.connection(state=state, reason=why, generation=7, **names)
    until = NOW + timedelta(hours=1)
    grant = Grant(generation=7, scopes=(), obtained_at=NOW, expires_at=until, refreshable=True)
    facts = {"tenant": "acme", "at": NOW, "action": AuditAction.NEEDS_REAUTH, "object": "con_1"}
    entry = AuditEntry.model_validate({**facts, "context": RequestContext(by="schedule"), "detail": detail})
    return json.loads(event_body(type, entry, connection, grant))


def test_what_an_event_says():
    assert said(LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED) == {
        "type": "connection.needs_reauth",
        "timestamp": "2026-03-01T12:00:00Z",
        "data": {
            "tenant": "acme",
            "connection_id": "con_1",
            "integration": "crm",
            "provider": "hubspot",
            "subject": "alice",
            "label": "default",
            "state": "needs_reauth",
            "generation": 7,
            "expires_at": "2026-03-01T13:00:00Z",
            "refresh_expires_at": None,
            "ends_at": None,
            "reason": "grant_rejected",
            "repairer": "subject",
            "reauthorize": "/v1/connections/con_1/reauthorize",
            "revocation": None,
        },
    }


@pytest.mark.parametrize("reason", list(ErrorCode))
def test_reauthorize_is_a_hint_exactly_where_the_subject_repairs(reason: ErrorCode):
    hint = said(LifecycleState.ACTIVE, None, reason=reason.value)["data"]["reauthorize"]
    assert (hint is not None) == (FAILURES[reason].repairer is Repairer.SUBJECT)


def test_the_words_of_a_person_are_no_reason_and_nothing_leads_back_from_a_final_state():
    data = said(LifecycleState.REVOKED, ErrorCode.CONNECTION_REVOKED, reason="left us")["data"]
    assert (data["reason"], data["reauthorize"]) == ("connection_revoked", None)


def test_what_ends_is_said_with_its_moment():
    until = said(LifecycleState.ACTIVE, days=3, ends_at="2026-03-04T12:00:00+00:00")["data"]["ends_at"]
    assert until == "2026-03-04T12:00:00Z"
    assert said(LifecycleState.ACTIVE, ends_at="soon")["data"]["ends_at"] is None


def test_what_is_sent_fits_the_published_schema():
    import jsonschema  # seconds that other processes save

    schema = json.loads((ROOT / "docs/reference/event.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(said(LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED))
    broken = said(LifecycleState.ACTIVE) | {"type": "connection.exploded"}
    assert not validator.is_valid(broken)


def test_who_repairs_what_recovered_and_what_expires():
    data = said(LifecycleState.ACTIVE, type=EventType.RECOVERED, reason=ErrorCode.GRANT_REJECTED)["data"]
    assert (data["reason"], data["repairer"], data["reauthorize"]) == (None, None, None)
    data = said(LifecycleState.ACTIVE, type=EventType.EXPIRING, days=3)["data"]
    assert (data["reason"], data["repairer"]) == (None, "subject")
    assert data["reauthorize"] == "/v1/connections/con_1/reauthorize"
