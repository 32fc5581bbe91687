"""`/console/imports`: grants from elsewhere, rehearsed first and then imported, with progress.

What is pasted is never sent back: the rehearsal is kept sealed (`api.transfer.imports`).
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.console.forms import Form
from evergrant_server.api.console.visit import ConsoleVisit, VisitDep, console_page
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.http.middleware import BODY_LIMIT
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.transfer.imports import (
    MAX_ROWS,
    ImportDraftBody,
    begin_import,
    forget_import,
    get_import,
    keep_rehearsal,
    list_imports,
)
from evergrant_server.api.transfer.intake import JsonObject
from evergrant_server.core.access import Action
from evergrant_server.core.errors import Failure
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_IMPORTS = "/console/imports"
_FIELDS = ("grants", "file", "integration", "without_expiry")
_EXPIRIES = ("expires_at", "expires_in", "expires", "never_expires")
_YES = {"true", "yes", "1"}
DONE = {"forgotten": "The import is forgotten. Connections that it made stay."}


@router.get(_IMPORTS)
@console_page
async def show_imports(visit: VisitDep, done: str = "") -> Response:
    """The form of a new import, and those of the visitor's last day."""
    return await _imports_page(visit, Form(), notice=DONE.get(done))


@router.post(_IMPORTS)
@console_page
async def rehearse(visit: VisitDep) -> Response:
    """Check what was pasted, and keep it for the order. Nothing is imported yet."""
    fields = await visit.read_form(BODY_LIMIT)
    call = await require_tenant_admin(visit.call)
    try:
        body = ImportDraftBody.model_validate({"items": _items(fields)})
        job = await keep_rehearsal(call, body.items)
    except ValidationError:
        return await _imports_page(visit, _refused(fields, f"It has 1 to {MAX_ROWS} rows."))
    except Failure as refusal:
        return await _imports_page(visit, Form.refused(_shown(fields), refusal, _FIELDS))
    return redirect_response(f"{_IMPORTS}/{job.id}")


@router.get(f"{_IMPORTS}/{{import_id}}")
@console_page
async def show_import(visit: VisitDep, import_id: str) -> Response:
    """What a rehearsal would make, or how far an import is, with the rows to repair."""
    return await _import_page(visit, import_id, Form())


@router.post(f"{_IMPORTS}/{{import_id}}/begin")
@console_page
async def begin(visit: VisitDep, import_id: str) -> Response:
    """Import what was rehearsed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        if "refresher_stopped" not in fields:
            why = "Stop the previous refresher first: with rotating refresh tokens, two lose the grant."
            raise invalid_request("refresher_stopped", why)
        await begin_import(import_id, call)
    except Failure as refusal:
        return await _import_page(visit, import_id, Form.refused(fields, refusal, ("refresher_stopped",)))
    return redirect_response(f"{_IMPORTS}/{import_id}")


@router.post(f"{_IMPORTS}/{{import_id}}/forget")
@console_page
async def forget(visit: VisitDep, import_id: str) -> Response:
    """Forget the rehearsal with what was pasted."""
    await visit.read_form()
    await forget_import(import_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_IMPORTS}?done=forgotten")


async def _imports_page(visit: ConsoleVisit, form: Form, notice: str | None = None) -> Response:
    call = await require_auditor(visit.call)
    administers = call.allows(Action.ADMIN, Target())
    return visit.show_form(
        "imports.html",
        "Imports",
        form,
        administers=administers,
        imports=(await list_imports(call)).items if administers else [],
        most=MAX_ROWS,
        notice=notice,
    )


async def _import_page(visit: ConsoleVisit, import_id: str, form: Form) -> Response:
    job = await get_import(import_id, await require_tenant_admin(visit.call))
    return visit.show_form("import.html", "Import", form, job=job)


def _refused(fields: Mapping[str, str], why: str) -> Form:
    return Form.refused(_shown(fields), invalid_request("grants", why), _FIELDS)


def _shown(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields that are sent back: what was pasted holds tokens."""
    return {name: text for name, text in fields.items() if name not in ("grants", "file")}


def _items(fields: Mapping[str, str]) -> list[Any]:
    """The rows of the form's text, or of its file: CSV, JSON Lines or a JSON list.

    Raises Failure INVALID_REQUEST, which names a line and never quotes it.
    """
    text = (fields.get("file") or fields.get("grants", "")).removeprefix("\ufeff").strip()
    if not text:
        raise invalid_request("grants", "Paste the grants, or choose a file.")
    rows = _json_rows(text) if text[0] in "[{" else _csv_rows(text)
    return [_filled(row, fields) if isinstance(row, dict) else row for row in rows]


def _filled(row: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """The row with what the form says of rows that don't."""
    if (integration := fields.get("integration")) and not row.get("integration"):
        row["integration"] = integration
    if fields.get("without_expiry") == "unknown" and not any(name in row for name in _EXPIRIES):
        row["expires"] = "unknown"
    return row


def _json_rows(text: str) -> Iterator[Any]:
    if text[0] == "[":
        rows = _parsed(text, "The list is not valid JSON.")
        yield from rows if isinstance(rows, list) else [rows]
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _parsed(line, f"Line {number} is not valid JSON: each line is one object.")


def _parsed(text: str, why: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=JsonObject.of)
    except (ValueError, RecursionError):
        raise invalid_request("grants", why) from None


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    """The rows under a line of members' names. An empty cell is none."""
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader)]
        if "subject" not in names or len(set(names)) < len(names):
            why = (
                "The first line names the columns, each once: integration, subject, access_token and others."
            )
            raise invalid_request("grants", why)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(names):
                why = f"Line {reader.line_num} has {len(cells)} cells, and the first line {len(names)}."
                raise invalid_request("grants", why)
            yield {
                name: _value(name, cell.strip())
                for name, cell in zip(names, cells, strict=True)
                if cell.strip()
            }
    except csv.Error:
        raise invalid_request("grants", f"Line {reader.line_num} is not valid CSV.") from None


def _value(name: str, cell: str) -> Any:
    """The cell as the member's JSON type. What is no number stays a text, which the rehearsal refuses."""
    if name == "scopes":
        return cell.split()
    if name == "never_expires":
        return cell.lower() in _YES
    if name == "expires_in":
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell
