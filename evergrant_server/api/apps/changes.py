"""`GET /v1/access/changes`: what changed between two moments about who may do what, with what was before."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from evergrant_server import audit
from evergrant_server.api.http.call import AuditorCall
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, UtcDatetime, View
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

_PUTS = (AuditAction.APP_PUT, AuditAction.PERMIT_PUT, AuditAction.INTEGRATION_PUT)

Moment = Annotated[UtcDatetime | None, Query()]


class AccessChangeView(View):
    """One change. `detail` is what was written, `before` what the record before it said of the same object;
    null for what was new, and for changes that replace nothing."""

    at: datetime
    action: str
    object: str
    by: str
    detail: dict[str, Any]
    before: dict[str, Any] | None


@router.get("/v1/access/changes")
async def list_access_changes(
    call: AuditorCall,
    since: Moment = None,
    until: Moment = None,
    limit: PageLimit = 100,
    cursor: PageCursor = None,
) -> Page[AccessChangeView]:
    """Changes of apps, keys, permits, approvals, requests for access and integrations, oldest first.

    From `since` on, and before `until`, as the audit log has them.
    """
    bound = {"list": "access-changes", "since": _text(since), "until": _text(until)}
    after = call.cursors.decode(cursor, call.tenant, **bound)
    async with call.api.store.read() as tx:
        window = audit.Window(since, until, access_only=True)
        found = await audit.page(tx, call.tenant, window=window, after=after, limit=limit + 1)
        items = [await _change(tx, record) for record in found[:limit]]
    next_cursor = call.cursors.next_cursor(found, limit, audit.page_cursor, call.tenant, **bound)
    return Page(items=items, next_cursor=next_cursor)


async def _change(tx: Transaction, record: AuditRecord) -> AccessChangeView:
    before = None
    if record.action in _PUTS:
        before = await audit.record_before(tx, record)
    return AccessChangeView.of(record, by=record.context.by, before=None if before is None else before.detail)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
