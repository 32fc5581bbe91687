"""The audit log and a connection's history, as they are read."""

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Query

from evergrant_server import audit
from evergrant_server.api.connections.history import previous_run_id, run_id_of, timeline_events
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import CallerDep, ContextDep, TenantAdminDep, visible_connection
from evergrant_server.api.http.responses import AuditView, Page, Timeline
from evergrant_server.core.access import Action
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.store import Transaction
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["audit"])

Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=2000)]
_MAX_RUNS = 20


@router.get("/v1/audit")
async def list_audit_records(
    parts: ContextDep, caller: TenantAdminDep, limit: Limit = 100, cursor: Cursor = None
) -> Page[AuditView]:
    """The tenant's log, oldest first."""
    async with parts.store.read() as tx:
        return await _page(tx, parts, caller, None, limit, cursor)


@router.get("/v1/audit/verify")
async def verify_audit_log(parts: ContextDep, caller: TenantAdminDep) -> dict[str, Any]:
    """Walk every chain; says the first place that isn't whole. Keep `heads` elsewhere."""
    verdict = await audit.verify_log(parts.store, caller.tenant)
    heads = {
        shard: {"count": head.count, "last_hash": head.last_hash} for shard, head in verdict.heads.items()
    }
    return {
        "ok": verdict.ok,
        "records": verdict.records,
        "shard": verdict.shard,
        "seq": verdict.seq,
        "why": verdict.problem,
        "heads": heads,
    }


@router.get("/v1/connections/{connection_id}/audit")
async def list_connection_audit(
    connection_id: str, parts: ContextDep, caller: CallerDep, limit: Limit = 100, cursor: Cursor = None
) -> Page[AuditView]:
    """What happened to one connection, oldest first."""
    async with parts.store.read() as tx:
        await visible_connection(tx, caller, connection_id, Action.ADMIN, Action.CONNECT)
        return await _page(tx, parts, caller, connection_id, limit, cursor)


async def _page(
    tx: Transaction, parts: ApiContext, caller: Caller, of: str | None, limit: int, cursor: str | None
) -> Page[AuditView]:
    bound = {"list": "audit", "of": of}
    after = parts.cursors.decode(cursor, caller.tenant, **bound)
    found = await audit.page(tx, caller.tenant, object=of, after=after, limit=limit + 1)
    following = parts.cursors.next_cursor(found, limit, audit.page_cursor, caller.tenant, **bound)
    return Page(items=[AuditView.of(record) for record in found[:limit]], next_cursor=following)


@router.get("/v1/connections/{connection_id}/history")
async def get_connection_history(connection_id: str, parts: ContextDep, caller: CallerDep) -> Timeline:
    """The connection's life as its workflow's histories have it: exported runs, then the live one."""
    async with parts.store.read() as tx:
        connection = await visible_connection(tx, caller, connection_id, Action.ADMIN, Action.CONNECT)
        exported = await tx.histories.of_connection(connection.tenant, connection.id)
    runs = {export.run_id: export.events for export in exported}
    live = await _add_live_runs(parts, connection_workflow_id(connection.tenant, connection.id), runs)
    items = [event for run_id, events in runs.items() for event in timeline_events(run_id, events)]
    items.sort(key=lambda event: event.at)  # stable: events of one moment keep their order
    return Timeline(items=items, live=live)


async def _add_live_runs(parts: ApiContext, workflow: str, runs: dict[str, list[dict[str, Any]]]) -> bool:
    """Fetch the newest run, and those before it that were not exported yet."""
    run_id: str | None = None
    try:
        for _ in range(_MAX_RUNS):
            events = await parts.link.history(workflow, run_id)
            run_id = run_id_of(events) or run_id or ""
            runs[run_id] = events
            run_id = previous_run_id(events)
            if run_id is None or run_id in runs:
                return True
    except Exception as error:
        # Temporal is away, or has forgotten the run: what was exported is shown all the same
        log_event(log, logging.INFO, LogEvent.HISTORY_UNREADABLE, type(error).__name__, object=workflow)
        return False
    return True
