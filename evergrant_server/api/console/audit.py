"""`/console/audit`: the audit log by what happened, to what, by whom and when; a record, and its receipt;
`/console/streams`: where records are sent, and how far each stream is."""

from typing import Any

from fastapi import APIRouter
from pydantic import TypeAdapter
from starlette.responses import Response

from evergrant_server.api.audit import AuditView, get_audit_record, list_audit_records
from evergrant_server.api.audit_proofs import AuditProofView, get_audit_proof
from evergrant_server.api.audit_streams import list_audit_streams
from evergrant_server.api.console.typed import moment_of
from evergrant_server.api.console.visit import ROWS, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.call import require_auditor
from evergrant_server.api.http.models import UtcDatetime
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_AUDIT = "/console/audit"
_LONGEST = 300
_MOMENT: TypeAdapter[Any] = TypeAdapter(UtcDatetime)
# what a record's object is, by the beginning of its id: a page of the console
_PAGES = {"con": "/console/connections", "inc": "/console/incidents", "req": "/console/requests"}


@router.get(_AUDIT)
@console_page
async def show_audit(
    visit: VisitDep,
    action: str = "",
    by: str = "",
    object: str = "",
    since: str = "",
    until: str = "",
    cursor: str = "",
) -> Response:
    """A page of the records that fit, the newest first."""
    call = await require_auditor(visit.call)
    typed = {"action": action, "by": by, "object": object, "since": since, "until": until}
    kept = {name: text[:_LONGEST].strip() for name, text in typed.items() if text.strip()}
    wanted: dict[str, Any] = {name: kept[name] for name in ("by", "object") if name in kept}
    wanted |= {name: _moment(kept, name) for name in ("since", "until") if name in kept}
    if "action" in kept:
        wanted["action"] = chosen(AuditAction, kept["action"], "action")
    page = await list_audit_records(call, limit=ROWS, cursor=cursor or None, newest_first=True, **wanted)
    return visit.show(
        "audit.html",
        "Audit log",
        records=page.items,
        places=[place_of(record) for record in page.items],
        fields={name: kept.get(name, "") for name in typed},
        actions=sorted(AuditAction),
        names=await visit.names_of(record.by for record in page.items),
        **pages_of(_AUDIT, cursor, page.next_cursor, **kept),
    )


def _moment(fields: dict[str, str], name: str) -> Any:
    try:
        return _MOMENT.validate_python(moment_of(fields, name))
    except ValueError:
        raise invalid_request(
            name, f"{name}: write a date and time in UTC, such as 2026-01-31T12:00."
        ) from None


@router.get(f"{_AUDIT}/{{audit_place}}")
@console_page
async def show_record(visit: VisitDep, audit_place: str) -> Response:
    """One record with all of its details."""
    call = await require_auditor(visit.call)
    record = await get_audit_record(_record_of(audit_place), call)
    page = _PAGES.get(record.object.partition("_")[0])
    return visit.show(
        "audit_record.html",
        record.action,
        record=record,
        place=audit_place,
        page=None if page is None else f"{page}/{record.object}",
        names=await visit.names_of([record.by]),
    )


@router.get(f"{_AUDIT}/{{audit_place}}/receipt")
@console_page
async def download_receipt(visit: VisitDep, audit_place: str) -> Response:
    """The record's receipt as a file, which is checked without this server."""
    call = await require_auditor(visit.call)
    name = _record_of(audit_place)
    await get_audit_record(name, call)
    try:
        receipt = await get_audit_proof(name, visit.request, call)
    except Failure as failure:
        if failure.code is not ErrorCode.NOT_FOUND:
            raise
        why = "This record has no receipt yet: a checkpoint covers it within seconds."
        raise Failure(ErrorCode.NOT_FOUND, why, repair="Try again in some seconds.") from None
    assert isinstance(receipt, AuditProofView)
    headers = {"Content-Disposition": f'attachment; filename="receipt-{audit_place.replace(":", "-")}.json"'}
    headers["Cache-Control"] = "no-store"
    return Response(receipt.model_dump_json(indent=2), media_type="application/json", headers=headers)


def place_of(record: AuditView) -> str:
    """The record's place as an address has it."""
    return f"{record.shard}:{record.seq}"


def _record_of(audit_place: str) -> str:
    """The place as the API has it. Raises Failure NOT_FOUND for none."""
    shard, sign, index = audit_place.rpartition(":")
    if not (sign and shard and index.isascii() and index.isdigit() and len(index) < 19):
        raise Failure(ErrorCode.NOT_FOUND)
    return f"{shard}/{int(index)}"


@router.get("/console/streams")
@console_page
async def show_streams(visit: VisitDep) -> Response:
    """Each stream: its receiver, what waits for it, and why it doesn't take it."""
    call = await require_auditor(visit.call)
    return visit.show("streams.html", "Streams", streams=(await list_audit_streams(call, limit=200)).items)
