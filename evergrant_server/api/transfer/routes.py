"""`/v1/connections/import` and `/v1/connections/export`: import existing grants, export them sealed."""

import json
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import PlainTextResponse, Response

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.recording import record_bulk_read
from evergrant_server.api.http.call import AdminCall, CommandResponse, ExportCall, ExportCommand
from evergrant_server.api.http.models import MAX_INTEGER
from evergrant_server.api.integrations.changes import integration_by_name
from evergrant_server.api.transfer.intake import ImportWriter, JsonObject
from evergrant_server.api.transfer.models import ExportBody, ExportView, ImportBody, ImportOutcome, ImportView
from evergrant_server.api.transfer.verification import ImportVerification
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.export import Export, ExportStatus
from evergrant_server.core.ids import ExportId, Tenant, new_id
from evergrant_server.core.messages.export import ExportStart
from evergrant_server.core.messages.names import export_workflow_id
from evergrant_server.core.outbox import OutboxKind, outbox_message
from evergrant_server.crypto import Recipient
from evergrant_server.store import Transaction

router = APIRouter(tags=["transfer"])

EXPORT_TTL = timedelta(days=1)  # an unfetched export is deleted after this
_MAX_LINES = 1000

ExportQuery = Annotated[str, Query(max_length=64)]


@router.post("/v1/connections/import")
async def import_connections(body: ImportBody, request: Request, call: AdminCall) -> ImportView:
    """Import existing grants. Items are independent of each other; repeating one changes nothing, unless
    its grant was found dead: then its tokens are installed anew.

    Needs the action `admin` for the whole tenant. Stop the previous refresher of these grants first:
    with rotating refresh tokens, two refreshers lose the grant.
    """
    async with call.api.store.read() as tx:
        await tx.tenants.require_enabled(call.tenant)  # a session that was made on the host comes so far
    items = json.loads(await request.body(), object_pairs_hook=JsonObject.of)["items"]
    verification = ImportVerification(call)
    writer = ImportWriter(call)
    outcomes = await writer.import_items(items, dry_run=body.dry_run, in_background=not body.verify)
    if body.dry_run:
        return ImportView(items=outcomes)
    if not body.verify:
        return ImportView(items=[_without_verification(outcome) for outcome in outcomes])
    call.api.relay.notify()
    return ImportView(items=await verification.verify(outcomes, writer.renewed))


@router.post("/v1/connections/export", status_code=202, response_model=ExportView)
@dangerous("always: refresh tokens leave")
async def request_export(body: ExportBody, call: ExportCommand) -> Response:
    """Have a worker seal every live grant to `public_key`. Fetch the lines with GET.

    Needs the action `export` for the whole tenant: `admin` isn't enough.
    """
    recipient = Recipient.parse(body.public_key)
    now = call.now
    export = Export(
        tenant=call.tenant,
        id=ExportId(new_id("exp")),
        recipient=recipient.jwk,
        filters=body.filters,
        by=call.context.by,
        trace_id=call.context.trace_id,
        created_at=now,
        expires_at=now + EXPORT_TTL,
    )

    async def begin(tx: Transaction) -> CommandResponse:
        integration = await integration_by_name(tx, call.api.registry, call.tenant, body.filters.integration)
        approved = await use_approval(tx, call, body, {"integration": integration})
        await tx.exports.add(export)
        start = ExportStart(
            tenant=export.tenant, export_id=export.id, expires_at=export.expires_at, context=call.context
        )
        target = export_workflow_id(export.tenant, export.id)
        await tx.outbox.add(outbox_message(export.tenant, OutboxKind.START_EXPORT, target, start, now))
        detail = {
            "key": recipient.thumbprint,
            "filters": body.filters.model_dump(exclude_none=True),
            **approved,
        }
        await call.record(tx, AuditAction.EXPORT_REQUESTED, export.id, **detail)
        await record_bulk_read(tx, call, "export", export=export.id)
        return CommandResponse.of(_view(export), 202)

    return await call.run(body, begin)


@router.get(
    "/v1/connections/export",
    response_class=PlainTextResponse,
    responses={202: {"model": ExportView, "description": "A worker is still sealing"}},
)
async def fetch_export(
    call: ExportCall,
    id: ExportQuery,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER)] = 0,
    limit: Annotated[int, Query(ge=1, le=_MAX_LINES)] = 200,
) -> Response:
    """Up to `limit` sealed lines after the first `after`, each a compact JWE. 202 while a worker seals.

    An empty page is the end. Lines are kept until DELETE, or for a day.
    """
    async with call.api.store.read() as tx:
        export = await _require_export(tx, call.tenant, id)
        lines = await tx.exports.lines(export, after, limit)
    view = _view(export)
    if export.status is ExportStatus.RUNNING:
        return Response(view.model_dump_json(), 202, {"Retry-After": "1"}, "application/json")
    if after + len(lines) >= export.exported:  # the last page was read
        detail = {"key": view.key, "connections": export.exported}
        await call.write(lambda tx: call.record(tx, AuditAction.CONNECTIONS_EXPORTED, export.id, **detail))
    totals = {"X-Evergrant-Exported": str(export.exported), "X-Evergrant-Skipped": str(export.skipped)}
    return PlainTextResponse("".join(f"{line}\n" for line in lines), 200, totals)


@router.delete("/v1/connections/export", response_model=ExportView)
async def delete_export(call: ExportCall, id: ExportQuery) -> ExportView:
    """Delete the sealed lines after fetching them."""

    async def drop(tx: Transaction) -> Export:
        export = await _require_export(tx, call.tenant, id)
        after = await tx.exports.delete_lines(export)
        await call.record(tx, AuditAction.EXPORT_DELETED, export.id, reason="requested")
        return after

    return _view(await call.write(drop))


def _without_verification(outcome: ImportOutcome) -> ImportOutcome:
    """A worker installs the grant after the answer."""
    if outcome.status != "imported":
        return outcome
    return outcome.with_verification("unverified", detail="no verification was requested")


def _view(export: Export) -> ExportView:
    return ExportView.of(export, key=Recipient.parse(dict(export.recipient)).thumbprint)


async def _require_export(tx: Transaction, tenant: Tenant, id: str) -> Export:
    export = await tx.exports.get(tenant, ExportId(id))
    if export is None or export.status is ExportStatus.GONE:
        raise Failure(ErrorCode.NOT_FOUND, "There is no such export, or its lines were deleted.")
    return export
