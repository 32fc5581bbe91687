"""The audit log and a connection's history, as they are read."""

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Query

from evergrant_server import audit
from evergrant_server.api.authentication import Caller
from evergrant_server.api.guards import Asking, TenantAdmin, With, visible_connection
from evergrant_server.api.parts import Parts
from evergrant_server.api.timeline import events_of, previous_run, run_of
from evergrant_server.api.views import AuditView, Page, Timeline
from evergrant_server.core.access import Action
from evergrant_server.core.ids import workflow_id
from evergrant_server.store import Tx
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["audit"])

Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=2000)]
_MOST_RUNS = 20


@router.get("/v1/audit")
async def everything(
    parts: With, caller: TenantAdmin, limit: Limit = 100, cursor: Cursor = None
) -> Page[AuditView]:
    """The tenant's log, oldest first."""
    async with parts.store.read() as tx:
        return await _page(tx, parts, caller, None, limit, cursor)


@router.get("/v1/audit/verify")
async def verify(parts: With, caller: TenantAdmin) -> dict[str, Any]:
    """Walk every chain; says the first place that isn't whole. Keep `heads` elsewhere."""
    verdict = await audit.verify(parts.store, caller.tenant)
    heads = {lane: {"count": head.count, "last_hash": head.last_hash} for lane, head in verdict.heads.items()}
    return {
        "ok": verdict.ok,
        "records": verdict.records,
        "lane": verdict.lane,
        "seq": verdict.seq,
        "why": verdict.why,
        "heads": heads,
    }


@router.get("/v1/connections/{connection_id}/audit")
async def of_connection(
    connection_id: str, parts: With, caller: Asking, limit: Limit = 100, cursor: Cursor = None
) -> Page[AuditView]:
    """What happened to one connection, oldest first."""
    async with parts.store.read() as tx:
        await visible_connection(tx, caller, connection_id, Action.ADMIN, Action.CONNECT)
        return await _page(tx, parts, caller, connection_id, limit, cursor)


async def _page(
    tx: Tx, parts: Parts, caller: Caller, of: str | None, limit: int, cursor: str | None
) -> Page[AuditView]:
    bound = {"list": "audit", "of": of}
    after = parts.cursors.read(cursor, caller.tenant, **bound)
    found = await audit.page(tx, caller.tenant, object=of, after=after, limit=limit + 1)
    following = parts.cursors.following(found, limit, audit.page_cursor, caller.tenant, **bound)
    return Page(items=[AuditView.of(record) for record in found[:limit]], next_cursor=following)


@router.get("/v1/connections/{connection_id}/history")
async def history(connection_id: str, parts: With, caller: Asking) -> Timeline:
    """The connection's life as its workflow's histories have it: exported runs, then the live one."""
    async with parts.store.read() as tx:
        connection = await visible_connection(tx, caller, connection_id, Action.ADMIN, Action.CONNECT)
        exported = await tx.histories.of(connection.tenant, connection.id)
    runs = {export.run_id: export.events for export in exported}
    live = await _add_live(parts, workflow_id(connection.tenant, connection.id), runs)
    items = [event for run_id, events in runs.items() for event in events_of(run_id, events)]
    items.sort(key=lambda event: event.at)  # stable: events of one moment keep their order
    return Timeline(items=items, live=live)


async def _add_live(parts: Parts, workflow: str, runs: dict[str, list[dict[str, Any]]]) -> bool:
    """Fetch the newest run, and those before it that were not exported yet."""
    run_id: str | None = None
    try:
        for _ in range(_MOST_RUNS):
            events = await parts.link.history(workflow, run_id)
            run_id = run_of(events) or run_id or ""
            runs[run_id] = events
            run_id = previous_run(events)
            if run_id is None or run_id in runs:
                return True
    except Exception as error:
        # Temporal is away, or has forgotten the run: what was exported is shown all the same
        say(log, logging.INFO, Event.HISTORY_UNREADABLE, type(error).__name__, object=workflow)
        return False
    return True
