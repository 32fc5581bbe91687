"""`/v1/audit/proof` and `/checkpoint`: what the audit log proves to those who don't trust its database."""

import base64
import json
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from evergrant_server.api.http.call import ApiCall, AuditorCall, Call
from evergrant_server.api.http.models import RecordPlace, View
from evergrant_server.audit.checkpoints import proofs
from evergrant_server.audit.checkpoints.notes import cose_receipt, hash_lines, log_proof, verifier_key
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target
from evergrant_server.store.audit.checkpoints import LogKey

router = APIRouter(tags=["audit"])

COSE = "application/cose"
# headers of a COSE receipt: the record as it was hashed, its leaf; the head of its shard with its own receipt
COSE_BODY, COSE_LEAF, COSE_HEAD = "evergrant-body", "evergrant-leaf", "evergrant-head"
FORMAT = "evergrant-receipt/v1"
# the records of which the app that made the request keeps a receipt
_OWN = (AuditAction.LEASE_ISSUED, AuditAction.DPOP_PROOF_ISSUED, AuditAction.PROXY_CALLED)
Since = Annotated[int | None, Query(ge=0, lt=2**63)]


class AuditProofView(View):
    """The receipt of a record: checked offline, with the log's public key from elsewhere than here.

    `body` is the record as it was hashed, null once it was erased. `proof` leads from its leaf to the head of
    its shard's tree, `head_proof` from that head to a checkpoint of the heads log (tlog-proof@v1 of C2SP).
    """

    format: str
    tenant: str
    record: str
    body: str | None
    leaf: str
    proof: str
    head: str
    head_proof: str


class AuditCheckpointView(View):
    """The newest checkpoint, with the signatures of witnesses that it has (a signed note of C2SP).

    `log` is the public key. `consistency` proves that this tree extends the one of the size `since`.
    """

    log: str
    size: int
    checkpoint: str
    consistency: list[str]


@router.get(
    "/v1/audit/proof",
    response_model=AuditProofView,
    responses={200: {"content": {COSE: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def get_audit_proof(record: RecordPlace, request: Request, call: Call) -> AuditProofView | Response:
    """The receipt of a record, `SHARD/INDEX`: for an admin or auditor, and the app that the record is of.

    A new record has one within seconds. With `Accept: application/cose` it is a COSE receipt (RFC 9942).
    """
    shard, _, index = record.rpartition("/")
    async with call.api.store.read() as tx:
        receipt = await proofs.receipt(tx, call.tenant, shard, int(index))
        if receipt is None or not _may_read(call, receipt.record.body):
            raise Failure(ErrorCode.NOT_FOUND)
        if COSE in request.headers.get("accept", ""):
            return Response(_cose(receipt), media_type=COSE)
    return receipt_view(receipt)


@router.get("/v1/audit/checkpoint")
async def get_audit_checkpoint(call: AuditorCall, since: Since = None) -> AuditCheckpointView:
    """The newest checkpoint of the installation's log, and that it extends an older one.

    Keep it where nobody who administers Evergrant can write.
    """
    async with call.api.store.read() as tx:
        extension = await proofs.extension(tx, since or 0)
        if extension is None:
            raise Failure(ErrorCode.NOT_FOUND)
    key, checkpoint = extension.key, extension.checkpoint
    return AuditCheckpointView(
        log=verifier_key(key.name, key.public),
        size=checkpoint.size,
        checkpoint=checkpoint.note,
        consistency=hash_lines(extension.path).split(),
    )


def _may_read(call: ApiCall, body: str | None) -> bool:
    """An admin or auditor, or the app whose lease or call the record is: by its id, for a name is given
    again once an app is deleted."""
    if call.may_audit(Target()):
        return True
    record = json.loads(body) if body is not None and body.startswith("{") else {}
    return record.get("action") in _OWN and record["detail"].get("app") == call.caller.app.id


def receipt_view(receipt: proofs.Receipt) -> AuditProofView:
    """As the route answers."""
    record, head = receipt.record, receipt.head
    return AuditProofView(
        format=FORMAT,
        tenant=record.name.tenant,
        record=f"{record.name.shard}/{record.index}",
        body=record.body,
        leaf=base64.b64encode(record.leaf).decode(),
        proof=log_proof(record.index, record.path, record.tree.note),
        head=head.body or "",
        head_proof=log_proof(head.index, head.path, head.tree.note),
    )


def _cose(receipt: proofs.Receipt) -> bytes:
    """The record's receipt; body and leaf stand in it, and the head with its own receipt."""
    key, record, head = receipt
    of_head = [(head.body or "").encode(), _cose_of(key, head, {})]
    body = None if record.body is None else record.body.encode()
    return _cose_of(key, record, {COSE_BODY: body, COSE_LEAF: record.leaf, COSE_HEAD: of_head})


def _cose_of(key: LogKey, proven: proofs.Proven, beside: Mapping[str, object]) -> bytes:
    tree = proven.tree
    place = (proven.name, tree.size, proven.index, proven.path, tree.cose)
    return cose_receipt(key.name, key.public, *place, beside)
