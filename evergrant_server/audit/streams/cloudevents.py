"""Audit records as CloudEvents 1.0: a batch in structured mode (JSON event format, section 4).

`source` and `id` name a record for good, so that a receiver ignores what comes twice. `data_base64` is the
body, byte for byte: its hash can be checked against a receipt. A record that was erased has no data.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from evergrant_server.audit.records import StoredRecord

CONTENT_TYPE = "application/cloudevents-batch+json; charset=UTF-8"
TYPE_PREFIX = "evergrant.audit."


def encode_cloudevents(records: Sequence[StoredRecord], source: str) -> tuple[bytes, str]:
    events = [cloud_event(stored, source) for stored in records]
    return json.dumps(events, separators=(",", ":")).encode(), CONTENT_TYPE


def cloud_event(stored: StoredRecord, source: str) -> dict[str, Any]:
    record = stored.record
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": stored.place,
        "source": f"{source}/tenants/{quote(record.tenant, safe='')}",
        "type": f"{TYPE_PREFIX}{record.action}",
        "time": record.at.isoformat().replace("+00:00", "Z"),
        # two documented extensions: records of one key are in order, by their gapless numbers
        "partitionkey": f"{record.tenant}/{record.shard}",
        "sequence": f"{record.seq:019d}",
    }
    if record.object:
        event["subject"] = record.object
    if stored.body is not None:
        event["datacontenttype"] = "application/json"
        event["data_base64"] = base64.b64encode(stored.body.encode()).decode()
    return event
