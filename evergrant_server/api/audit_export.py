"""`GET /v1/audit/export`: the audit log as JSON Lines, page by page, in the order of shards and numbers.

A page ends with a line that names the next one: a file of pages says by itself how far it is, and is gone on
with after whatever cut it. No page is built in parts: its records are bounded, and the server keeps nothing
between two pages. Each line is a JSON object of one of four kinds:

- `{"shard": …, "index": …, "hash": …, "body": …}`: a record. `body` is the text that `hash` covers, or null
  where it was erased.
- `{"receipt": {…}}`: before the records of a shard; the receipt of the last one that a signed head covers.
- `{"history": {"workflow_id": …, "run_id": …, "events": […], …}}`: a connection's run, where asked.
- `{"page": {"tenant": …, "at": …, "next": …}}`: the end of a page; `next` is null behind the last line.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from evergrant_server.api.audit_proofs import receipt_view
from evergrant_server.api.http.call import ApiCall, AuditorCall
from evergrant_server.api.http.models import PageCursor
from evergrant_server.audit.checkpoints import proofs
from evergrant_server.audit.records import StoredRecord, following, shard_after
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.problems import invalid_request
from evergrant_server.store import HistoryExport, Transaction

router = APIRouter(tags=["audit"])

MEDIA_TYPE = "application/jsonl"
_MOST_BYTES = 4 * 1024 * 1024  # of a page's bodies
_MOST_RUNS = 5  # of a page: a run has up to 500 events

_RECORDS, _RUNS = "records", "runs"
Place = tuple[str, str, str]  # of what kind; behind which shard and number, or which workflow and run
ExportLimit = Annotated[int, Query(ge=1, le=1000)]


class JsonLines(Response):
    media_type = MEDIA_TYPE


@router.get("/v1/audit/export", response_class=JsonLines)
async def export_audit_log(
    call: AuditorCall, limit: ExportLimit = 500, cursor: PageCursor = None, histories: bool = False
) -> JsonLines:
    """A page of the whole audit log, as JSON Lines: each record with the text that its hash covers.

    With `histories` the exported runs of connections' workflows follow. The last line names the next page.
    """
    listing = call.listing("audit-export", limit, cursor, histories=histories)
    place = (_RECORDS, "", "") if listing.after is None else _place(listing.after)
    async with call.api.store.read() as tx:
        if place[0] == _RECORDS:
            lines, following_place = await _records(tx, call, place, limit)
            if following_place is None and histories:
                following_place = (_RUNS, "", "")
            runs: Sequence[HistoryExport] = ()
        else:
            after = (place[1], place[2]) if place[1] else None
            runs = await tx.histories.page(call.tenant, after, _MOST_RUNS + 1)
            last = runs[_MOST_RUNS - 1] if len(runs) > _MOST_RUNS else None
            following_place = None if last is None else (_RUNS, last.workflow_id, last.run_id)
            lines = []
    lines += [await _run_line(call, run) for run in runs[:_MOST_RUNS]]
    following_cursor = None if following_place is None else listing.cursor_after(json.dumps(following_place))
    end = {"tenant": call.tenant, "at": call.now.isoformat(), "next": following_cursor}
    return JsonLines("".join(f"{line}\n" for line in (*lines, _line({"page": end}))))


def _place(text: str) -> Place:
    """The place in a cursor, which is authentic. Raises Failure INVALID_REQUEST for one of another
    version."""
    try:
        kind, first, second = json.loads(text)
    except ValueError:
        raise invalid_request("cursor", "The cursor is of another version: export anew.") from None
    return kind, first, second


async def _records(
    tx: Transaction, call: ApiCall, place: Place, limit: int
) -> tuple[list[str], Place | None]:
    """The lines of the next records, and behind which place it goes on; None: these were the last."""
    lines: list[str] = []
    left = limit
    shard = place[1] or await shard_after(tx, call.tenant, None)
    seq, size = int(place[2] or -1), 0
    while shard is not None and left and size < _MOST_BYTES:
        if seq < 0:
            lines += await _receipt_lines(tx, call, shard)
        page = await following(tx, call.tenant, shard, seq, left)
        lines += [_record_line(stored) for stored in page]
        left -= len(page)
        size += sum(len(stored.body or "") for stored in page)
        if page:
            seq = page[-1].record.seq
        if left and size < _MOST_BYTES:
            shard, seq = await shard_after(tx, call.tenant, shard), -1
    return lines, None if shard is None else (_RECORDS, shard, str(seq))


async def _receipt_lines(tx: Transaction, call: ApiCall, shard: str) -> list[str]:
    """The receipt of the last record that the shard's newest head covers; none where no head is signed
    yet, or what is stored doesn't lead to it: whoever verifies the export is told so, by the record."""
    head = await tx.checkpoints.head(call.tenant, shard)
    if head is None or not head.tree.size:
        return []
    try:
        receipt = await proofs.receipt(tx, call.tenant, shard, head.tree.size - 1)
    except Failure as failure:
        if failure.code is not ErrorCode.AUTHORITY_BROKEN:
            raise
        return []
    return [] if receipt is None else [_line({"receipt": receipt_view(receipt).model_dump()})]


def _record_line(stored: StoredRecord) -> str:
    record = stored.record
    return _line({"shard": record.shard, "index": record.seq, "hash": record.hash, "body": stored.body})


async def _run_line(call: ApiCall, run: HistoryExport) -> str:
    """A run with its events opened, as who may read stories reads them."""
    shown = run.model_dump(mode="json", exclude={"tenant", "events"})
    return _line({"history": {**shown, "events": await call.api.link.open_events(run.events)}})


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
