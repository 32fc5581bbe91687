"""`/v1/imports`: an import in two steps for who looks at it first: a rehearsal that is kept, and its order.

What was sent is kept sealed by the tenant's intake key, as an answer is that is kept for its key
(ADR 0113), until the order, for an hour at the most. After the order only ids and outcomes are left.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from evergrant_server.api.http.call import AdminCall, ApiCall
from evergrant_server.api.http.models import Body, Page, View
from evergrant_server.api.transfer.intake import ImportWriter, JsonObject
from evergrant_server.api.transfer.models import ImportItem, ImportOutcome
from evergrant_server.api.transfer.verification import REFUSED_KINDS
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, ImportId, is_id, new_id
from evergrant_server.core.lifecycle.snapshot import FIRST_GENERATION
from evergrant_server.core.model import CheckedModel
from evergrant_server.store import Transaction

router = APIRouter(tags=["transfer"])

MAX_ROWS = 1000
_DRAFT_LASTS = timedelta(hours=1)
_MOST_LISTED = 100
# no Idempotency-Key of a request has a space
_PREFIX, _MARK, _KEPT = "import ", "an import", 200


class ImportDraftBody(Body):
    """Up to 1000 grants, as `POST /v1/connections/import` takes them; a body has at most 1 MiB."""

    items: Annotated[
        list[Any],
        Field(min_length=1, max_length=MAX_ROWS, repr=False),
        WithJsonSchema(
            {"type": "array", "minItems": 1, "maxItems": MAX_ROWS, "items": ImportItem.model_json_schema()}
        ),
    ]


class ImportRowView(View):
    """A row that somebody has to repair: it wasn't imported, or the provider refused its first refresh."""

    index: int
    connection_id: str | None
    code: ErrorCode | None
    field: str | None
    detail: str | None
    repair: str | None


class ImportJobView(View):
    """An import, rehearsed or ordered. `rows` are the first 100 to repair.

    Before the order `would_import` counts what it would make, and `expires_at` is when it is forgotten. After
    it `imported` connections `waiting` for a worker become `verified` by their first refresh; `installed`
    have no refresh token; of `failed` ones the first refresh failed. An order that was cut off has
    `begun_at` and `expires_at`: repeat it.
    """

    id: str
    created_at: datetime
    begun_at: datetime | None
    expires_at: datetime | None
    total: int
    would_import: int
    imported: int
    exists: int
    invalid: int
    waiting: int
    verified: int
    installed: int
    failed: int
    rows: list[ImportRowView]


class ImportSummaryView(View):
    """An import of the caller's last day."""

    id: str
    at: datetime


class _Job(CheckedModel):
    """What is kept of an import. `items` are empty once its order was carried out."""

    id: ImportId
    created_at: datetime
    begun_at: datetime | None = None
    items: list[Any] = Field(repr=False)
    outcomes: list[ImportOutcome]


@router.post("/v1/imports", status_code=201)
async def rehearse_import(body: ImportDraftBody, request: Request, call: AdminCall) -> ImportJobView:
    """Check grants as an import would, and keep them sealed for its order. Nothing is imported yet."""
    items = json.loads(await request.body(), object_pairs_hook=JsonObject.of)["items"]
    return await keep_rehearsal(call, items)


async def keep_rehearsal(call: ApiCall, items: Sequence[Any]) -> ImportJobView:
    """The rehearsal of these grants, which is kept. Raises Failure TENANT_DISABLED."""
    async with call.api.store.read() as tx:
        await tx.tenants.require_enabled(call.tenant)
    outcomes = await ImportWriter(call).import_items(items, dry_run=True, in_background=False)
    job = _Job(id=ImportId(new_id("imp")), created_at=call.now, items=list(items), outcomes=outcomes)
    await call.write(lambda tx: _store(tx, call, job))
    return _view(job, {})


@router.get("/v1/imports")
async def list_imports(call: AdminCall) -> Page[ImportSummaryView]:
    """The caller's own imports of the last day, newest first."""
    async with call.api.store.read() as tx:
        kept = await tx.idempotency.stored(call.tenant, call.caller.app.id, _PREFIX, _MOST_LISTED)
    return Page(items=[ImportSummaryView(id=key.removeprefix(_PREFIX), at=at) for key, at in kept])


@router.get("/v1/imports/{import_id}")
async def get_import(import_id: str, call: AdminCall) -> ImportJobView:
    """One import of the caller's, with its progress."""
    async with call.api.store.read() as tx:
        job = await _require_job(tx, call, import_id)
        ids = [ConnectionId(outcome.connection_id or "") for outcome in job.outcomes if _is_new(outcome)]
        installed = await tx.connections.past_consent(call.tenant, ids) if ids else []
    return _view(job, {connection.id: (connection, refreshable) for connection, refreshable in installed})


@router.post("/v1/imports/{import_id}/begin", status_code=202)
async def begin_import(import_id: str, call: AdminCall) -> ImportJobView:
    """Import what was rehearsed. A worker installs each and refreshes it; repeating it changes nothing.

    Stop the previous refresher of these grants first: with rotating refresh tokens, two refreshers lose the
    grant.
    """
    job = await call.write(lambda tx: _ordered(tx, call, import_id))
    if job.items:
        accepted = [outcome.index for outcome in job.outcomes if outcome.status == "would_import"]
        items = [job.items[index] for index in accepted]
        made = await ImportWriter(call).import_items(items, dry_run=False, in_background=False)
        made = await _own_outcomes(call, job, made)
        outcomes = {outcome.index: outcome for outcome in job.outcomes}
        outcomes |= {
            index: outcome.__replace__(index=index) for index, outcome in zip(accepted, made, strict=True)
        }
        ended = job.__replace__(items=[], outcomes=list(outcomes.values()))
        await call.write(lambda tx: _store(tx, call, ended))
        call.api.relay.notify()
    return await get_import(import_id, call)


@router.delete("/v1/imports/{import_id}", status_code=204)
async def forget_import(import_id: str, call: AdminCall) -> Response:
    """Forget a rehearsal with what was sent, or the report of an import; its connections stay."""

    async def forget(tx: Transaction) -> None:
        await _require_job(tx, call, import_id)
        await tx.idempotency.forget(call.tenant, call.caller.app.id, _PREFIX + import_id)

    await call.write(forget)
    return Response(status_code=204)


async def _ordered(tx: Transaction, call: ApiCall, import_id: str) -> _Job:
    """Write down when the import was ordered, unless an earlier order has. Raises as `_require_job`, and
    Failure TENANT_DISABLED."""
    await tx.tenants.require_enabled(call.tenant)
    job = await _require_job(tx, call, import_id)
    if job.begun_at is None:
        job = job.__replace__(begun_at=call.now)
        await _store(tx, call, job)
    return job


async def _own_outcomes(call: ApiCall, job: _Job, made: Sequence[ImportOutcome]) -> list[ImportOutcome]:
    """The outcomes of an order that may have come twice, or been cut off: a connection that exists was
    imported by the same order if its newest import is no older than the order."""
    assert job.begun_at is not None
    outcomes = list[ImportOutcome]()
    imported = {outcome.connection_id for outcome in made if _is_new(outcome)}
    async with call.api.store.read() as tx:
        for outcome in made:
            id = outcome.connection_id
            if outcome.status == "exists" and id is not None and id not in imported:
                consent = await tx.consents.import_consent(call.tenant, ConnectionId(id))
                if consent is not None and consent.created_at >= job.begun_at:
                    imported.add(id)
                    outcome = outcome.__replace__(status="imported", detail=None)
            outcomes.append(outcome)
    return outcomes


async def _store(tx: Transaction, call: ApiCall, job: _Job) -> None:
    app_id, key = call.caller.app.id, _PREFIX + job.id
    await tx.idempotency.forget(call.tenant, app_id, key)
    await tx.idempotency.store(call.tenant, app_id, key, _MARK, _KEPT, job.model_dump_json(), call.now)


async def _require_job(tx: Transaction, call: ApiCall, import_id: str) -> _Job:
    """The caller's import. Raises Failure NOT_FOUND, also for a rehearsal that is too old."""
    kept = None
    if is_id(import_id, "imp"):
        kept = await tx.idempotency.find(call.tenant, call.caller.app.id, _PREFIX + import_id)
    job = None if kept is None else _Job.model_validate_json(kept.body)
    if job is None or (job.items and call.now >= job.created_at + _DRAFT_LASTS):
        raise Failure(
            ErrorCode.NOT_FOUND, "There is no such import of yours, or it was rehearsed too long ago."
        )
    return job


def _is_new(outcome: ImportOutcome) -> bool:
    return outcome.status == "imported" and outcome.connection_id is not None


def _view(job: _Job, installed: dict[ConnectionId, tuple[Connection, bool]]) -> ImportJobView:
    """The import with what has become of each connection by now."""
    judged = [_judged(outcome, installed) if _is_new(outcome) else outcome for outcome in job.outcomes]
    statuses = [outcome.status for outcome in judged]
    ends = [outcome.verification for outcome in judged if _is_new(outcome)]
    repairs = [
        outcome for outcome in judged if outcome.status == "invalid" or outcome.verification == "failed"
    ]
    return ImportJobView(
        id=job.id,
        created_at=job.created_at,
        begun_at=job.begun_at,
        expires_at=job.created_at + _DRAFT_LASTS if job.items else None,
        total=len(judged),
        would_import=statuses.count("would_import"),
        imported=statuses.count("imported"),
        exists=statuses.count("exists"),
        invalid=statuses.count("invalid"),
        waiting=ends.count(None),
        verified=ends.count("verified"),
        installed=ends.count("unverified"),
        failed=ends.count("failed"),
        rows=[_row(outcome) for outcome in repairs[:_MOST_LISTED]],
    )


def _judged(outcome: ImportOutcome, installed: dict[ConnectionId, tuple[Connection, bool]]) -> ImportOutcome:
    """The outcome with the verification that has ended; without one while a worker has something to do."""
    connection, refreshable = installed.get(ConnectionId(outcome.connection_id or ""), (None, False))
    if connection is None:
        return outcome
    if connection.state is not LifecycleState.ACTIVE:
        return outcome.with_verification("failed", connection.reason or ErrorCode.CONSENT_REQUIRED)
    if connection.generation > FIRST_GENERATION:
        return outcome.with_verification("verified")
    if not refreshable:
        return outcome.with_verification("unverified")
    code = connection.last_failure
    refused = code is not None and Failure(code).kind in REFUSED_KINDS
    return outcome.with_verification("failed", code) if refused else outcome


def _row(outcome: ImportOutcome) -> ImportRowView:
    rule = None if outcome.code is None else FAILURES[outcome.code]
    detail = outcome.detail or (rule.meaning if rule else None)
    repair = rule.repair if rule and outcome.status != "invalid" else None
    return ImportRowView.of(outcome, detail=detail, repair=repair)
