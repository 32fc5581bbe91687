"""Audit records as OpenTelemetry logs: `ExportLogsServiceRequest` in protobuf (OTLP 1.x, OTLP/HTTP).

The body of a log record is that of the audit record, byte for byte.
"""

import re
from collections.abc import Sequence

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from evergrant_server import __version__
from evergrant_server.audit.records import StoredRecord
from evergrant_server.audit.streams.cloudevents import TYPE_PREFIX
from evergrant_server.audit.streams.ocsf import mapped

CONTENT_TYPE = "application/x-protobuf"
_TRACE_ID = re.compile("[0-9a-f]{32}")


def encode_otlp(records: Sequence[StoredRecord], source: str) -> tuple[bytes, str]:
    resource = Resource(
        attributes=[
            _text("service.name", "evergrant"),
            _text("service.version", __version__),
            _text("service.namespace", source),
        ]
    )
    scope = InstrumentationScope(name="evergrant.audit", version=__version__)
    logs = ScopeLogs(scope=scope, log_records=[_log_record(stored) for stored in records])
    request = ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=resource, scope_logs=[logs])])
    return request.SerializeToString(), CONTENT_TYPE


def rejected_records(reply: bytes) -> int:
    """How many records the receiver says it has dropped; a client must not send them again (OTLP/HTTP,
    "Partial Success"). 0 for a reply that isn't one."""
    try:
        return ExportLogsServiceResponse.FromString(reply).partial_success.rejected_log_records
    except Exception:
        return 0


def _log_record(stored: StoredRecord) -> LogRecord:
    record = stored.record
    moment = int(record.at.timestamp() * 1_000_000) * 1_000
    failed = mapped(record.action).failed
    severity = SeverityNumber.SEVERITY_NUMBER_WARN if failed else SeverityNumber.SEVERITY_NUMBER_INFO
    log_record = LogRecord(
        time_unix_nano=moment,
        observed_time_unix_nano=moment,
        severity_number=severity,
        severity_text="WARN" if failed else "INFO",
        event_name=f"{TYPE_PREFIX}{record.action}",
        attributes=[
            _text("evergrant.tenant", record.tenant),
            _text("evergrant.audit.place", stored.place),
            _text("evergrant.audit.action", record.action),
            _text("evergrant.audit.object", record.object),
            _text("evergrant.audit.by", record.context.by),
        ],
    )
    if stored.body is None:
        log_record.attributes.append(KeyValue(key="evergrant.audit.erased", value=AnyValue(bool_value=True)))
    else:
        log_record.body.string_value = stored.body
    if _TRACE_ID.fullmatch(record.context.trace_id):
        log_record.trace_id = bytes.fromhex(record.context.trace_id)
    return log_record


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))
