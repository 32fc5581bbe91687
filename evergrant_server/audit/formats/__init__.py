"""What receivers of audit records are sent: CloudEvents, OCSF and OpenTelemetry logs. Pure.

Owns how a record becomes an event of each format. Doesn't own which records (`audit.streams`) nor how they
are sent (the worker).
"""

from collections.abc import Sequence
from typing import NamedTuple

from evergrant_server.audit.records import StoredRecord
from evergrant_server.core.audit_streams.stream import StreamFormat


class EncodedBatch(NamedTuple):
    """The body of a request."""

    content: bytes
    content_type: str


def encode(format: StreamFormat, records: Sequence[StoredRecord], source: str) -> EncodedBatch:
    """A batch in this format. `source` is the installation's public URL."""
    # protobuf takes a while to load: a process that sends none doesn't
    match format:
        case StreamFormat.CLOUDEVENTS:
            from evergrant_server.audit.formats.cloudevents import encode_cloudevents

            content, content_type = encode_cloudevents(records, source)
        case StreamFormat.OCSF:
            from evergrant_server.audit.formats.ocsf import encode_ocsf

            content, content_type = encode_ocsf(records)
        case StreamFormat.OTLP:
            from evergrant_server.audit.formats.otlp import encode_otlp

            content, content_type = encode_otlp(records, source)
    return EncodedBatch(content, content_type)
