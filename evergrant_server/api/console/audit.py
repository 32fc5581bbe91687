"""`/console/audit`: the audit log by what happened, to what, by whom and when; a record, and its receipt;
`/console/streams`: where records are sent, how far each stream is, and how one is made, changed, deleted."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response

from evergrant_server.api.audit import AuditView, get_audit_record, list_audit_records
from evergrant_server.api.audit_proofs import AuditProofView, get_audit_proof
from evergrant_server.api.audit_streams import (
    AuditStreamBody,
    AuditStreamSecretView,
    AuditStreamView,
    delete_audit_stream,
    get_audit_stream,
    list_audit_streams,
    put_audit_stream,
    rotate_audit_stream_secret,
)
from evergrant_server.api.console.forms import Form, new_once, once_of, require_typed, slug_of
from evergrant_server.api.console.typed import lines_of, moment_of
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.call import ApiCall, require_auditor, require_tenant_admin
from evergrant_server.api.http.models import UtcDatetime
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.audit_streams.stream import StreamBegin, StreamFormat
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_AUDIT, _STREAMS, _NEW_STREAM = "/console/audit", "/console/streams", "/console/new/stream"
_LONGEST = 300
_STREAM_FIELDS = ("name", "url", "format", "headers", "begin", "disabled")
_NO_NEW_SECRET = "This form has made its secret, which was shown once. If it is lost, make another."
DONE = {
    "changed": "The stream is changed. What waits is sent at once.",
    "deleted": "The stream is deleted, with its secrets. Nothing is sent to it any more.",
}
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


# --- streams --------------------------------------------------------------------------------------


@router.get(_STREAMS)
@console_page
async def show_streams(visit: VisitDep, done: str = "") -> Response:
    """Each stream: its receiver, what waits for it, and why it doesn't take it."""
    call = await require_auditor(visit.call)
    return visit.show(
        "streams.html",
        "Streams",
        streams=(await list_audit_streams(call, limit=200)).items,
        administers=call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
    )


@router.get(_NEW_STREAM)
@console_page
async def show_new_stream(visit: VisitDep) -> Response:
    """The form of a new stream."""
    await require_tenant_admin(visit.call)
    return _stream_form(visit, Form(), None)


@router.post(_NEW_STREAM)
@console_page
async def make_stream(visit: VisitDep) -> Response:
    """Make a stream, and show its signing secret once."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        name = slug_of(fields, "name")
        await _require_no_stream(call, name)
        made = await put_audit_stream(name, _stream_body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return _stream_form(visit, _refused_stream(fields, refusal), None)
    return _show_stream_secret(visit, made, "The stream is made")


@router.get(f"{_STREAMS}/{{name}}/edit")
@console_page
async def show_edit_stream(visit: VisitDep, name: str) -> Response:
    """The form of a stream, filled with what it is but for its headers."""
    stream = await get_audit_stream(name, await require_tenant_admin(visit.call))
    values = {"url": stream.url, "format": stream.format.value}
    values |= {"disabled": "yes"} if stream.disabled else {}
    return _stream_form(visit, Form(values), stream)


@router.post(f"{_STREAMS}/{{name}}/edit")
@console_page
async def change_stream(visit: VisitDep, name: str) -> Response:
    """Change where records go, and as what. Headers that are left out stay."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    stream = await get_audit_stream(name, call)  # the API's route would make one that isn't there
    try:
        await put_audit_stream(name, _stream_body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return _stream_form(visit, _refused_stream(fields, refusal), stream)
    return redirect_response(f"{_STREAMS}?done=changed")


@router.get(f"{_STREAMS}/{{name}}/rotate-secret")
@console_page
async def show_rotate_stream(visit: VisitDep, name: str) -> Response:
    """The form of a new signing secret."""
    return await _stream_rotation(visit, name, Form())


@router.post(f"{_STREAMS}/{{name}}/rotate-secret")
@console_page
async def rotate_stream(visit: VisitDep, name: str) -> Response:
    """Make a new signing secret, and show it once. The same form makes no second one."""
    fields = await visit.read_form()
    try:
        call = await once_of(await require_tenant_admin(visit.call), fields, _NO_NEW_SECRET)
        answer = await rotate_audit_stream_secret(name, call)
    except Failure as refusal:
        return await _stream_rotation(visit, name, Form.refused(fields, refusal, ()))
    made = AuditStreamSecretView.model_validate_json(bytes(answer.body))
    return _show_stream_secret(visit, made, "The signing secret is replaced")


@router.get(f"{_STREAMS}/{{name}}/delete")
@console_page
async def show_delete_stream(visit: VisitDep, name: str) -> Response:
    """What would end with the stream."""
    return await _stream_deletion(visit, name, Form())


@router.post(f"{_STREAMS}/{{name}}/delete")
@console_page
async def end_stream(visit: VisitDep, name: str) -> Response:
    """Delete the stream, if the form repeats its name."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        require_typed(fields, name, "stream")
        await delete_audit_stream(name, call)
    except Failure as refusal:
        return await _stream_deletion(visit, name, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"{_STREAMS}?done=deleted")


def _stream_form(visit: ConsoleVisit, form: Form, stream: AuditStreamView | None) -> Response:
    title = "Make a stream" if stream is None else f"Change {stream.name}"
    formats, begins = list(StreamFormat), list(StreamBegin)
    return visit.show_form("stream_form.html", title, form, stream=stream, formats=formats, begins=begins)


async def _stream_rotation(visit: ConsoleVisit, name: str, form: Form) -> Response:
    stream = await get_audit_stream(name, await require_tenant_admin(visit.call))
    title = f"Replace the signing secret of {name}"
    return visit.show_form("stream_rotate.html", title, form, stream=stream, once=new_once())


async def _stream_deletion(visit: ConsoleVisit, name: str, form: Form) -> Response:
    stream = await get_audit_stream(name, await require_tenant_admin(visit.call))
    counts = [
        (
            stream.unsent,
            "record waits for it, and wouldn't be sent",
            "records wait for it, and wouldn't be sent",
        )
    ]
    values = {"stream": stream, "counts": counts}
    return visit.show_form("stream_delete.html", f"Delete {name}?", form, route=delete_audit_stream, **values)


def _show_stream_secret(visit: ConsoleVisit, made: AuditStreamSecretView, title: str) -> Response:
    return visit.show("stream_secret.html", title, stream=made)


def _stream_body(fields: Mapping[str, str]) -> AuditStreamBody:
    """Raises Failure INVALID_REQUEST, ValidationError."""
    values: dict[str, Any] = {name: fields[name] for name in ("format", "begin") if fields.get(name)}
    headers: dict[str, str] = {}
    for line in lines_of(fields, "headers"):
        name, sign, value = (part.strip() for part in line.partition(":"))
        if not (name and sign and value):
            raise invalid_request("headers", "Write each line as Name: value.")
        headers[name] = value
    values |= {"headers": headers} if headers else {}
    url, disabled = fields.get("url", ""), "disabled" in fields
    return AuditStreamBody.model_validate({**values, "url": url, "disabled": disabled})


def _refused_stream(fields: Mapping[str, str], refusal: Failure | ValidationError) -> Form:
    shown = {name: text for name, text in fields.items() if name != "headers"}
    return Form.refused(shown, refusal, _STREAM_FIELDS)


async def _require_no_stream(call: ApiCall, name: str) -> None:
    """Raise Failure ALREADY_EXISTS for a name that the API's route would change the stream of."""
    async with call.api.store.read() as tx:
        if await tx.audit_streams.by_name_unchecked(call.tenant, name) is not None:
            raise Failure(ErrorCode.ALREADY_EXISTS, "There is a stream of this name.", field="name")
