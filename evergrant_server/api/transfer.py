"""`/v1/connections/import` and `/export`: existing grants in without a new consent, and out again, sealed."""

import json
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import PlainTextResponse, Response

from evergrant_server import audit
from evergrant_server.api.guards import By, IdempotencyKey, TenantAdmin, With
from evergrant_server.api.idempotency import Answer, Once
from evergrant_server.api.shapes import LARGEST
from evergrant_server.api.transactions import committed
from evergrant_server.api.transfer_intake import Intake
from evergrant_server.api.transfer_shapes import (
    ExportBody,
    ExportView,
    ImportBody,
    ImportView,
)
from evergrant_server.api.transfer_verification import Verification
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.export import Export, ExportStatus
from evergrant_server.core.ids import ExportId, Tenant, export_workflow_id, new_id
from evergrant_server.core.messages import Asked, ExportStart
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, written
from evergrant_server.crypto import Recipient
from evergrant_server.store import Tx

router = APIRouter(tags=["transfer"])

KEPT_FOR = timedelta(days=1)  # lines that nobody fetched are deleted after this
_MOST_LINES = 1000


class _Pairs(dict[str, Any]):
    """A JSON object that remembers whether a member came twice (RFC 8259 section 4 leaves it open)."""

    doubled = False

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> "_Pairs":
        found = cls(pairs)
        found.doubled = len(found) < len(pairs) or any(getattr(it, "doubled", False) for _, it in pairs)
        return found


@router.post("/v1/connections/import")
async def imported(
    body: ImportBody, request: Request, parts: With, caller: TenantAdmin, asked: By
) -> ImportView:
    """Take grants that exist already. Each item stands for itself; sending one again changes nothing.

    Needs the action `admin` for the whole tenant. Stop whatever refreshed these grants before:
    of two refreshers one loses, and with rotating refresh tokens both do.
    """
    items = json.loads(await request.body(), object_pairs_hook=_Pairs.of)["items"]
    verification = Verification(parts, caller.tenant, asked, refresh=body.verify)
    intake = Intake(parts, caller, asked)
    outcomes = [await intake.take(index, item, dry_run=body.dry_run) for index, item in enumerate(items)]
    if body.dry_run:
        return ImportView(items=outcomes)
    parts.relay.nudge()
    return ImportView(items=await verification.of(outcomes))


@router.post("/v1/connections/export", status_code=202, response_model=ExportView)
async def asked_for(
    body: ExportBody,
    request: Request,
    parts: With,
    caller: TenantAdmin,
    asked: By,
    key: IdempotencyKey = None,
) -> Response:
    """Have every live grant sealed to `public_key` by a worker. Fetch the lines with GET."""
    once = Once(request, caller, key, body)
    recipient = Recipient.read(body.public_key)
    now = parts.clock.now()
    export = Export(
        tenant=caller.tenant,
        id=ExportId(new_id("exp")),
        recipient=recipient.jwk,
        filters=body.filters,
        by=asked.by,
        trace_id=asked.trace_id,
        created_at=now,
        expires_at=now + KEPT_FOR,
    )

    async def begin(tx: Tx) -> Answer:
        await tx.exports.add(export)
        await tx.outbox.add(_start(export, asked))
        detail = {"key": recipient.thumbprint, "filters": body.filters.model_dump(exclude_none=True)}
        await _record(tx, export, AuditAction.EXPORT_ASKED, asked, now, detail)
        return Answer.of(202, ExportView.of(export, recipient.thumbprint))

    answer = await once.committed(parts, begin)
    parts.relay.nudge()
    return answer.response()


@router.get(
    "/v1/connections/export",
    response_class=PlainTextResponse,
    responses={202: {"model": ExportView, "description": "A worker is still sealing"}},
)
async def fetched(
    parts: With,
    caller: TenantAdmin,
    asked: By,
    id: Annotated[str, Query(max_length=64)] = "",
    after: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
    limit: Annotated[int, Query(ge=1, le=_MOST_LINES)] = 200,
) -> Response:
    """Sealed lines, a compact JWE each, behind the first `after`; none: that was all. 202 while sealing.

    They stay until they are deleted with DELETE, or for a day.
    """
    async with parts.store.read() as tx:
        export = await _export_of(tx, caller.tenant, id)
        lines = await tx.exports.lines(export, after, limit)
    view = ExportView.of(export, Recipient.read(dict(export.recipient)).thumbprint)
    if export.status is ExportStatus.RUNNING:
        return Response(view.model_dump_json(), 202, {"Retry-After": "1"}, "application/json")
    if after + len(lines) >= export.exported:  # whoever has read this far has all of them
        async with parts.store.write() as tx:
            detail = {"key": view.key, "connections": export.exported}
            now = parts.clock.now()
            await _record(tx, export, AuditAction.CONNECTIONS_EXPORTED, asked, now, detail)
    totals = {"X-Evergrant-Exported": str(export.exported), "X-Evergrant-Skipped": str(export.skipped)}
    return PlainTextResponse("".join(f"{line}\n" for line in lines), 200, totals)


@router.delete("/v1/connections/export", response_model=ExportView)
async def dropped(
    parts: With, caller: TenantAdmin, asked: By, id: Annotated[str, Query(max_length=64)] = ""
) -> ExportView:
    """Delete the sealed lines: they were fetched."""

    async def drop(tx: Tx) -> Export:
        export = await _export_of(tx, caller.tenant, id)
        after = await tx.exports.drop(export)
        now = parts.clock.now()
        await _record(tx, export, AuditAction.EXPORT_DROPPED, asked, now, {"why": "asked for"})
        return after

    export = await committed(parts.store, drop)
    return ExportView.of(export, Recipient.read(dict(export.recipient)).thumbprint)


async def _export_of(tx: Tx, tenant: Tenant, id: str) -> Export:
    found = await tx.exports.get(tenant, ExportId(id))
    if found is None or found.status is ExportStatus.GONE:
        raise Failure(Code.NOT_FOUND, "There is no such export, or its lines were deleted.")
    return found


def _start(export: Export, asked: Asked) -> OutboxMessage:
    order = ExportStart(tenant=export.tenant, export_id=export.id, expires_at=export.expires_at, asked=asked)
    target = export_workflow_id(export.tenant, export.id)
    return written(export.tenant, OutboxKind.START_EXPORT, target, order, export.created_at)


async def _record(
    tx: Tx, export: Export, action: AuditAction, asked: Asked, at: Any, detail: dict[str, Any]
) -> None:
    entry = AuditEntry(
        tenant=export.tenant, at=at, action=action, object=export.id, asked=asked, detail=detail
    )
    await audit.append(tx, entry)
