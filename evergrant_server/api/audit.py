"""`/v1/audit`: reads and verifies the audit log, and what it has about changes of who may do what."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from evergrant_server import audit
from evergrant_server.api.http.call import ApiCall, AuditorCall, Call
from evergrant_server.api.http.cursors import Listing
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, RecordPlace, UtcDatetime, View
from evergrant_server.core.access import STORY_ACTIONS, Action
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.provider_words import PROVIDER_SAID
from evergrant_server.policy import Target
from evergrant_server.store import Transaction
from evergrant_server.store.audit_tables import ACCESS_WORDS

router = APIRouter(tags=["audit"])
access_router = APIRouter(tags=["apps"])

_PUTS = (
    *(AuditAction.APP_PUT, AuditAction.PERMIT_PUT, AuditAction.INTEGRATION_PUT),
    *(AuditAction.ADMIN_LOGIN_PUT, AuditAction.CLIENT_LOGIN_PUT, AuditAction.TRUSTED_ISSUER_PUT),
    *(AuditAction.DELEGATION_RULE_PUT, AuditAction.DENIES_CHANGED),
)

_MOST_AT_ONCE = 100_000  # records that one request verifies: a second or two
_LOOKED_AT_ONCE, _MOST_LOOKED_AT = 500, 2000  # records, for those of one actor
Limit = Annotated[int, Query(ge=1, le=500)]
Moment = Annotated[UtcDatetime | None, Query()]


class AuditView(View):
    """One record. `shard` and `seq` are its place in the log, `hash` is its leaf there; `workflow_…` the
    event that caused it."""

    seq: int
    shard: str
    at: datetime
    action: str
    object: str
    by: str
    trace_id: str
    detail: dict[str, Any]
    workflow_id: str | None
    workflow_run_id: str | None
    workflow_event_id: int | None
    hash: str

    @classmethod
    def of_record(cls, record: AuditRecord) -> "AuditView":
        context, origin = record.context, record.provenance
        return cls.of(
            record,
            by=context.by,
            trace_id=context.trace_id,
            workflow_id=origin.workflow_id if origin else None,
            workflow_run_id=origin.run_id if origin else None,
            workflow_event_id=origin.event_id if origin else None,
        )


@router.get("/v1/audit")
async def list_audit_records(
    call: AuditorCall,
    limit: Limit = 100,
    cursor: PageCursor = None,
    action: Annotated[AuditAction | None, Query()] = None,
    object: Annotated[str | None, Query(min_length=1, max_length=300)] = None,
    by: Annotated[str | None, Query(min_length=1, max_length=300)] = None,
    since: Moment = None,
    until: Moment = None,
    newest_first: bool = False,
) -> Page[AuditView]:
    """The tenant's audit log, oldest first, or those of its records that fit.

    `object` is the id of what happened to something, `by` who did it, such as `app:sync`. Records are of
    `since` on, and before `until`. With `by` a page may be short although more follow: at most 2,000 records
    are looked at for it.
    """
    window = audit.Window(since, until, _is_of_access(action), () if action is None else (action,))
    async with call.api.store.read() as tx:
        return await _page(tx, call, object, limit, cursor, newest_first, window=window, by=by)


def _is_of_access(action: AuditAction | None) -> bool:
    """True for an action about who may do what: its records have an index of their own."""
    return action is not None and action.value.partition(".")[0] in ACCESS_WORDS


@router.get("/v1/audit/record")
async def get_audit_record(record: RecordPlace, call: AuditorCall) -> AuditView:
    """The record at a place, `SHARD/INDEX`."""
    shard, _, index = record.rpartition("/")
    async with call.api.store.read() as tx:
        stored = await audit.following(tx, call.tenant, shard, int(index) - 1, 1)
    if not stored or stored[0].place != record:
        raise Failure(ErrorCode.NOT_FOUND)
    return AuditView.of_record(stored[0].record)


@router.get("/v1/audit/verify")
async def verify_audit_log(call: AuditorCall) -> dict[str, Any]:
    """Verify the whole log and report the first flaw. Keep `heads`, by shard the size and the root of its
    tree, outside the database.

    A log of more than 100,000 records is verified by a worker: `POST /v1/questions`, question `log`.
    """
    async with call.api.store.read() as tx:
        records = await audit.records_to_verify(tx, call.tenant)
    if records > _MOST_AT_ONCE:
        why = f"{records} records are more than one request verifies. Ask POST /v1/questions for `log`."
        raise Failure(ErrorCode.INVALID_REQUEST, why)
    result = await audit.verify_log(call.api.store, call.tenant, whole=False)
    heads = {shard: head._asdict() for shard, head in result.heads.items()}
    return {
        "ok": result.ok,
        "records": result.records,
        "shard": result.shard,
        "seq": result.seq,
        "kind": result.kind,
        "problem": result.problem,
        "heads": heads,
    }


@router.get("/v1/connections/{connection_id}/audit")
async def list_connection_audit(
    connection_id: str, call: Call, limit: Limit = 100, cursor: PageCursor = None
) -> Page[AuditView]:
    """The audit records of one connection, oldest first; what a provider said, and who logged in instead of
    the subject, only for an admin or auditor."""
    return await connection_records(call, connection_id, limit, cursor)


async def connection_records(
    call: ApiCall, connection_id: str, limit: int, cursor: str | None, *, newest_first: bool = False
) -> Page[AuditView]:
    """A page of a connection's records, as far as the caller may read them. Raises Failure NOT_FOUND."""
    async with call.api.store.read() as tx:
        connection = await call.visible_connection(tx, connection_id, *STORY_ACTIONS, Action.CONNECT)
        page = await _page(tx, call, connection_id, limit, cursor, newest_first)
    if not call.may_audit(Target.of(connection)):
        for record in page.items:
            record.detail.pop(PROVIDER_SAID, None)
            if record.detail.get("binding") == Binding.OIDC:  # else an app has named the person itself
                record.detail.pop("claimed_subject", None)
    return page


async def _page(
    tx: Transaction,
    call: ApiCall,
    object_id: str | None,
    limit: int,
    cursor: str | None,
    newest_first: bool = False,
    *,
    window: audit.Window = audit.ALL,
    by: str | None = None,
) -> Page[AuditView]:
    bound: dict[str, object] = {"newest": True} if newest_first else {}
    bound |= {} if by is None else {"by": by}
    bound |= {} if window == audit.ALL else {"window": repr(window)}
    listing = call.listing("audit", limit, cursor, of=object_id, **bound)
    chosen = {"window": window, "object": object_id, "newest_first": newest_first}
    if by is not None:
        return await _page_by(tx, call, listing, by, chosen)
    records = await audit.page(tx, call.tenant, after=listing.after, limit=listing.most, **chosen)
    return listing.page([AuditView.of_record(record) for record in records], records, audit.page_cursor)


async def _page_by(
    tx: Transaction, call: ApiCall, listing: Listing, by: str, chosen: dict[str, Any]
) -> Page[AuditView]:
    """The records of one actor among the next 2,000: who did it stands in bodies, which no index has."""
    views: list[AuditView] = []
    after = listing.after
    for _ in range(_MOST_LOOKED_AT // _LOOKED_AT_ONCE):
        records = await audit.page(tx, call.tenant, after=after, limit=_LOOKED_AT_ONCE, **chosen)
        for record in records:
            after = audit.page_cursor(record)
            if record.context.by == by:
                views.append(AuditView.of_record(record))
            if len(views) == listing.limit:
                return Page(items=views, next_cursor=listing.cursor_after(after))
        if len(records) < _LOOKED_AT_ONCE:
            return Page(items=views)
    return Page(items=views, next_cursor=None if after is None else listing.cursor_after(after))


class AccessChangeView(View):
    """One change. `detail` is what was written, `before` what the record before it said of the same object;
    null for what was new, and for changes that replace nothing."""

    at: datetime
    action: str
    object: str
    by: str
    detail: dict[str, Any]
    before: dict[str, Any] | None


@access_router.get("/v1/access/changes")
async def list_access_changes(
    call: AuditorCall,
    since: Moment = None,
    until: Moment = None,
    limit: PageLimit = 100,
    cursor: PageCursor = None,
) -> Page[AccessChangeView]:
    """Changes of apps, keys, permits, approvals, requests for access, integrations, issuers, OAuth clients,
    and of where people and subjects log in, oldest first.

    From `since` on, and before `until`, as the audit log has them.
    """
    listing = call.listing("access-changes", limit, cursor, since=_text(since), until=_text(until))
    async with call.api.store.read() as tx:
        window = audit.Window(since, until, access_only=True)
        records = await audit.page(tx, call.tenant, window=window, after=listing.after, limit=listing.most)
        items = [await _change(tx, record) for record in records[:limit]]
    return listing.page(items, records, audit.page_cursor)


async def _change(tx: Transaction, record: AuditRecord) -> AccessChangeView:
    before = None
    if record.action in _PUTS:
        before = await audit.record_before(tx, record)
    return AccessChangeView.of(record, by=record.context.by, before=None if before is None else before.detail)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
