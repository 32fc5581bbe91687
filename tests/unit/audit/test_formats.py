"""What a receiver gets of an audit record: CloudEvents 1.0, OCSF 1.8 by its published schema, and OTLP."""

import base64
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from evergrant_server.audit.records import StoredRecord
from evergrant_server.audit.streams import encode
from evergrant_server.audit.streams.ocsf import OTHER, EventClass, mapped, ocsf_event
from evergrant_server.audit.streams.otlp import rejected_records
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.audit_streams.stream import StreamFormat
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext

SOURCE = "https://evergrant.example"
AT = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SCHEMA = json.loads((Path(__file__).parent / "ocsf-1.8.0.schema.json").read_text(encoding="utf-8"))
DETAILS: tuple[dict[str, Any], ...] = (
    {},
    {"app": "app_1", "scopes": ["read", "write"], "permit": "reads", "method": "post"},
    {"app_id": "app_1", "actions": [], "subject": "alice", "method": "TRACE"},
)


def stored(
    action: AuditAction = AuditAction.LEASE_ISSUED,
    detail: dict[str, Any] | None = None,
    *,
    by: str = "app:pipeline",
    object: str = "con_1",
    body: str | None = '{"é": 1}',
) -> StoredRecord:
    values: dict[str, Any] = {
        "tenant": Tenant("acme"),
        "at": AT,
        "action": action,
        "object": object,
        "context": RequestContext(by=by, trace_id=TRACE),
        "detail": detail or {},
        "shard": "main-3",
        "seq": 7,
    }
    fields = AuditRecord.model_fields
    unseen = {name: "" for name in fields if name not in values and fields[name].is_required()}
    record = AuditRecord.model_validate(values | unseen)
    return StoredRecord(record, body)


@cache
def judge_of(event_class: EventClass) -> Any:
    import jsonschema  # seconds that other processes save

    name = event_class.name.lower()
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


def problems_of(event: dict[str, Any]) -> list[str]:
    """What OCSF's schema says against an event of its class."""
    return [error.message for error in judge_of(EventClass(event["class_uid"])).iter_errors(event)]


@pytest.mark.parametrize("detail", DETAILS, ids=("bare", "full", "sparse"))
def test_every_action_is_an_event_that_ocsf_accepts(detail: dict[str, Any]):
    for action in AuditAction:
        for by, object in (("app:pipeline", "con_1"), ("person:psn_1", ""), ("", "")):
            assert not problems_of(ocsf_event(stored(action, detail, by=by, object=object))), action


def test_the_judge_refuses_what_ocsf_refuses():
    event = ocsf_event(stored())
    assert not problems_of(event)
    for wrong in (
        {name: value for name, value in event.items() if name != "src_endpoint"},
        event | {"made_up": 1},
        event | {"type_uid": 600305},
        event | {"time": "now"},
        event | {"actor": {}},
    ):
        assert problems_of(wrong)


@pytest.mark.parametrize(
    ("action", "detail", "event_class", "activity", "failed"),
    [
        (AuditAction.LEASE_ISSUED, {}, EventClass.API_ACTIVITY, 2, False),
        (AuditAction.LEASE_REFUSED, {}, EventClass.API_ACTIVITY, 2, True),
        (AuditAction.PROXY_CALLED, {"method": "DELETE"}, EventClass.API_ACTIVITY, 4, False),
        (AuditAction.PROXY_CALLED, {"method": "BREW"}, EventClass.API_ACTIVITY, OTHER, False),
        (AuditAction.PERMIT_PUT, {}, EventClass.USER_ACCESS, 1, False),
        (AuditAction.PERMIT_DELETED, {}, EventClass.USER_ACCESS, 2, False),
        (AuditAction.ACCESS_DENIED, {}, EventClass.USER_ACCESS, OTHER, True),
        (AuditAction.PERSON_LOGGED_IN, {}, EventClass.AUTHENTICATION, 1, False),
        (AuditAction.PERSON_REFUSED, {}, EventClass.AUTHENTICATION, 1, True),
        (AuditAction.KEY_LOGGED_IN, {}, EventClass.AUTHENTICATION, 1, False),
        (AuditAction.SESSION_ENDED, {}, EventClass.AUTHENTICATION, 2, False),
        (AuditAction.KEY_CREATED, {}, EventClass.ENTITY_MANAGEMENT, 1, False),
        (AuditAction.KEY_REVOKED, {}, EventClass.ENTITY_MANAGEMENT, 4, False),
        (AuditAction.TENANT_DISABLED, {}, EventClass.ENTITY_MANAGEMENT, 9, False),
        (AuditAction.KEY_ROTATION_PAUSED, {}, EventClass.ENTITY_MANAGEMENT, OTHER, False),
    ],
)
def test_an_action_has_the_class_of_its_subject_and_the_activity_of_its_verb(
    action: AuditAction, detail: dict[str, Any], event_class: EventClass, activity: int, failed: bool
):
    assert mapped(action, detail) == (event_class, activity, failed)


def test_an_ocsf_event_holds_the_body_and_its_place():
    content, content_type = encode(StreamFormat.OCSF, [stored(), stored(body=None)], SOURCE)
    first, erased = json.loads(content)
    assert content_type == "application/json"
    assert first["raw_data"] == '{"é": 1}'
    assert (first["metadata"]["uid"], first["metadata"]["sequence"]) == ("main-3/7", 7)
    assert first["metadata"]["correlation_uid"] == TRACE
    assert "raw_data" not in erased


def test_a_cloudevent_is_named_for_good_and_holds_the_body_byte_for_byte():
    content, content_type = encode(StreamFormat.CLOUDEVENTS, [stored(), stored(body=None)], SOURCE)
    first, erased = json.loads(content)
    assert content_type.startswith("application/cloudevents-batch+json")
    assert base64.b64decode(first["data_base64"]) == '{"é": 1}'.encode()
    required = {name: first[name] for name in ("specversion", "id", "source", "type")}
    assert required == {
        "specversion": "1.0",
        "id": "main-3/7",
        "source": "https://evergrant.example/tenants/acme",
        "type": "evergrant.audit.lease.issued",
    }
    assert first["time"] == "2026-05-04T03:02:01.123456Z"
    # names of attributes: lower-case letters and digits (CloudEvents 1.0.2, "Naming Conventions")
    assert all(name.replace("_base64", "").isalnum() and name.islower() for name in first)
    assert "data_base64" not in erased
    assert "datacontenttype" not in erased


def test_a_log_record_of_otlp_holds_the_body_and_the_trace():
    content, content_type = encode(StreamFormat.OTLP, [stored(), stored(body=None)], SOURCE)
    (logs,) = ExportLogsServiceRequest.FromString(content).resource_logs
    first, erased = logs.scope_logs[0].log_records
    assert content_type == "application/x-protobuf"
    assert first.body.string_value == '{"é": 1}'
    assert first.trace_id.hex() == TRACE
    assert first.time_unix_nano == 1777863721123456000
    attributes = {one.key: one.value.string_value for one in first.attributes}
    assert attributes["evergrant.audit.place"] == "main-3/7"
    assert not erased.HasField("body")


def test_what_an_otlp_receiver_dropped_is_counted():
    reply = bytes([0x0A, 0x02, 0x08, 0x03])  # partial_success { rejected_log_records: 3 }
    assert rejected_records(reply) == 3
    assert rejected_records(b"") == rejected_records(b"<html>") == 0
