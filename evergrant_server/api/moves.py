"""`/v1/moves/…`: what another cell asks of this one while a tenant is moved there (ADR 0139).

The caller is that cell's worker, which proves itself with the secret of the operator's offer. No app and no
person calls it. Rows are answered as they are stored: sealed columns stay sealed, and no key is among them.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from evergrant_server.access.cells import moves
from evergrant_server.access.context import ApiContext
from evergrant_server.api.http.models import Body
from evergrant_server.core.cells.moves import TenantMove
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import MoveId, Tenant
from evergrant_server.problems import invalid_request
from evergrant_server.store.cells.rows import moved_tables

router = APIRouter(include_in_schema=False)

_ENDS = ("resume", "leave")
_MOST_RANGES = 20  # of one answer
_MOST_BYTES = 600_000  # of one answer's rows; a worker reads no more than a mebibyte


class MoveBody(Body):
    """`table`, `after`, `last`: a range. `root` and `counts`: of the rows that the target has."""

    table: str = ""
    after: str = ""
    last: str | None = None
    root: str = ""
    counts: dict[str, int] = Field(default_factory=dict)


@router.post("/v1/moves/{tenant}/{move_id}/{step}")
async def move_step(tenant: str, move_id: str, step: str, body: MoveBody, request: Request) -> dict[str, Any]:
    """One step of the move. Raises Failure UNAUTHENTICATED, NOT_FOUND, STORE_CONFLICT, REFRESH_PENDING."""
    api: ApiContext = request.app.state.api
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Failure(ErrorCode.UNAUTHENTICATED)
    of, ends = (Tenant(tenant), MoveId(move_id)), step in _ENDS
    move = await moves.authenticate(api.store, api.clock, *of, secret, ends=ends)
    match step:
        case "ranges" | "rows":
            return await _read(api, move, step, body)
        case "pause":
            return {"spending": await moves.pause(api.store, api.clock, move)}
        case "versions":
            return await _versions(api, move)
        case "close":
            await moves.close(api.store, api.clock, move)
            return await _versions(api, move)
        case "resume":
            await moves.resume(api.store, api.clock, move)
        case "leave":
            await moves.leave(api.store, api.clock, move, body.root, body.counts)
            api.relay.notify()
        case _:
            raise Failure(ErrorCode.NOT_FOUND)
    return {}


async def _read(api: ApiContext, move: TenantMove, step: str, body: MoveBody) -> dict[str, Any]:
    if body.table not in moved_tables():
        raise invalid_request("table", "table: no table of that name moves")
    async with api.store.read() as tx:
        if step == "ranges":
            found = await tx.moved_rows.ranges(move.tenant, body.table, body.after, _MOST_RANGES)
            return {"ranges": [item.model_dump(mode="json") for item in found]}
        rows, rest = await tx.moved_rows.read(move.tenant, body.table, body.after, body.last, _MOST_BYTES)
        return {"rows": rows, "rest": rest}


async def _versions(api: ApiContext, move: TenantMove) -> dict[str, Any]:
    async with api.store.read() as tx:
        versions = await tx.moved_rows.versions(move.tenant)
        return {"versions": versions, "log": await moves.heads_digest(tx, move.tenant)}
