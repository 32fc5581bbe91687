"""Bodies of records: made once, hashed and stored as they are, and read back.

A body is one JSON object in ASCII: `{"v":2,"at","action","object","by","trace","wf"?,"detail","s"}`, in this
order. Nothing in it names its place: a proof does. `s` are 128 random bits, so that a record that was erased
can't be guessed from its leaf. Bodies of format 1 are from the hash chains of before; those of the heads
log are text (`head_body`).
"""

import base64
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from evergrant_server.audit.merkle_tree import HASH_BYTES
from evergrant_server.core.audit import AuditEntry, AuditRecord, bound_scopes
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import Provenance, RequestContext

ERASED = "erased"  # in the place of the requester, and of an object that is a subject
HEAD_FORMAT = "evergrant-head/v1"
_SALT_BYTES = 16
_SCALARS = (str, int, float, type(None))
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
    in_utc = at if at.tzinfo is UTC else at.astimezone(UTC)  # which is as slow as the rest
    return in_utc.isoformat(timespec="microseconds")


def salt() -> str:
    """What makes a body unlike every other."""
    return os.urandom(_SALT_BYTES).hex()


def body_of(entry: AuditEntry) -> str:
    """The body of an entry, with a new salt.

    Raises TypeError when its detail holds what JSON can't say: a Secret never gets in.
    """
    source = entry.provenance
    workflow = ""
    if source is not None:
        event = {"event": source.event_id, "id": source.workflow_id, "run": source.run_id}
        workflow = f'"wf":{canonical_json(event)},'
    return (
        f"{beginning(format_timestamp(entry.at), entry.action.value, entry.object)}"
        f'"by":{quoted(entry.context.by)},"trace":{quoted(entry.context.trace_id)},{workflow}'
        f'"detail":{canonical_json(bound_scopes(entry.detail))},"s":"{salt()}"}}'
    )


def beginning(moment: str, action: str, object: str) -> str:
    """What the body of a record begins with: that of which its row has copies."""
    return f'{{"v":2,"at":"{moment}","action":{quoted(action)},"object":{quoted(object)},'


class Head(NamedTuple):
    """The root of a tree at a size, as the heads log has it."""

    tenant: Tenant
    shard: str
    size: int
    root: bytes
    at: datetime

    @property
    def name(self) -> str:
        """What the head is of: the object of its record."""
        return f"{self.tenant}/{self.shard}"

    @property
    def body(self) -> str:
        root = base64.b64encode(self.root).decode()
        lines = (HEAD_FORMAT, self.tenant, self.shard, self.size, root, format_timestamp(self.at))
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, body: str) -> "Head":
        """Raises ValueError for any other text than `body`."""
        name, tenant, shard, size, root, at, end = body.split("\n")
        head = cls(
            Tenant(tenant),
            shard,
            int(size),
            base64.b64decode(root, validate=True),
            datetime.fromisoformat(at),
        )
        if name != HEAD_FORMAT or end or len(head.root) != HASH_BYTES or head.body != body:
            raise ValueError("is no head")
        return head


def record_of(row: Mapping[str, Any]) -> AuditRecord:
    """The record in a row of the audit table; of an erased one what is left."""
    body: str | None = row["body"]
    context, detail, provenance = RequestContext(by=ERASED), dict[str, Any](), None
    if body is not None and body.startswith("{"):
        content: dict[str, Any] = json.loads(body)
        trace = content["trace_id" if "format" in content else "trace"]
        context, detail = RequestContext(by=content["by"], trace_id=trace), content["detail"]
        provenance = _provenance_of(content)
    elif body is not None:
        head = Head.parse(body)
        context = RequestContext(by="schedule")
        detail = {"size": head.size, "root": base64.b64encode(head.root).decode()}
    return AuditRecord(
        **{name: row[name] for name in ("tenant", "shard", "seq", "at", "action", "object")},
        context=context,
        detail=detail,
        provenance=provenance,
        hash=row["leaf"].hex(),
    )


def _provenance_of(content: Mapping[str, Any]) -> Provenance | None:
    if "format" in content:  # 1
        if content["workflow_id"] is None:
            return None
        return Provenance.model_validate(
            {name: content[name] for name in ("workflow_id", "run_id", "event_id")}
        )
    workflow = content.get("wf")
    if workflow is None:
        return None
    return Provenance(workflow_id=workflow["id"], run_id=workflow["run"], event_id=workflow["event"])


def _check_names(value: Any) -> None:
    """Refuse names that are not text: json.dumps writes 1 and "1" alike."""
    if isinstance(value, _SCALARS):  # nearly all; asking for a Mapping takes longer
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise TypeError(f"a name in an audit detail is text, not {type(name).__name__}")
            _check_names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_names(inner)
