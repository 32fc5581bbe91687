"""What waits for streams of the audit log (`cursors`), and what is sent: CloudEvents, OCSF, OTLP logs.

Doesn't own how a batch is sent, and when (the worker).
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
            from evergrant_server.audit.streams.cloudevents import encode_cloudevents

            content, content_type = encode_cloudevents(records, source)
        case StreamFormat.OCSF:
            from evergrant_server.audit.streams.ocsf import encode_ocsf

            content, content_type = encode_ocsf(records)
        case StreamFormat.OTLP:
            from evergrant_server.audit.streams.otlp import encode_otlp

            content, content_type = encode_otlp(records, source)
    return EncodedBatch(content, content_type)
