"""The bytes that a record's hash covers: JSON with one spelling for every value."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

RECORD_FORMAT = 1
GENESIS_HASH = "0" * 64  # the previous hash of a chain's first record
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_json(value: Any) -> str:
    """One JSON text per value: sorted names, no spaces, ASCII only, no NaN.

    Raises TypeError for what JSON can't say (a Secret, for one) and for names that are not
    text, ValueError for NaN and infinities.
    """
    _check_names(value)
    return _ENCODER.encode(value)


def format_timestamp(at: datetime) -> str:
    """UTC with microseconds: the same text from SQLite and from PostgreSQL."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def record_hash(row: Mapping[str, Any]) -> str:
    """SHA-256 over everything a row of the audit table says, the hash before it included."""
    content = {
        "format": RECORD_FORMAT,
        "tenant": row["tenant"],
        "shard": row["shard"],
        "seq": row["seq"],
        "at": format_timestamp(row["at"]),
        "action": row["action"],
        "object": row["object"],
        "by": row["by"],
        "trace_id": row["trace_id"],
        "detail": json.loads(row["detail"]),
        "workflow_id": row["workflow_id"],
        "run_id": row["run_id"],
        "event_id": row["event_id"],
        "previous_hash": row["previous_hash"],
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _check_names(value: Any) -> None:
    """Refuse names that are not text: json.dumps writes 1 and "1" alike."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise TypeError(f"a name in an audit detail is text, not {type(name).__name__}")
            _check_names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_names(inner)
