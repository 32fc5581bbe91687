"""`/v1/connections`: create, list and read connections."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from evergrant_server.api.connections.create import ConnectionSetup
from evergrant_server.api.connections.models import ConnectionBody, ConnectionView
from evergrant_server.api.connections.source_tokens import require_source_permit, take_over_exchange
from evergrant_server.api.connections.view import add_device_code, connection_view
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.call import Call, Command, CommandResponse
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, UtcDatetime
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.policy import may_see
from evergrant_server.store import Transaction

router = APIRouter(tags=["connections"])

_SCAN_ROWS = 200  # rows read at a time while filtering by permits
_MAX_SCANS = 25


@router.post(
    "/v1/connections",
    status_code=201,
    response_model=ConnectionView,
    responses={200: {"model": ConnectionView, "description": "The connection exists already"}},
)
async def create_connection(body: ConnectionBody, call: Command) -> Response:
    """Create a connection, or return the existing one. Send the subject to `connect_url`."""

    async def create(tx: Transaction) -> CommandResponse:
        if body.source is not None:
            await require_source_permit(tx, call, body.source)
        found = await ConnectionSetup(call).find_or_create(tx, body)
        connection = found.connection
        if not found.created and body.source == connection.source:
            connection = await take_over_exchange(tx, call, connection)
        view = await connection_view(tx, connection, found)
        if found.consent is not None:
            view = view.model_copy(update={"expires_at": found.consent.expires_at})
        return CommandResponse.of(view, 201 if found.created else 200)

    # the request hash must not cover secrets
    sent = body.model_copy(update={"subject_token": None, "credential": None})
    return await add_device_code(call, await call.run(sent, create))


@router.get("/v1/connections")
async def list_connections(
    call: Call,
    integration: Annotated[str | None, Query(max_length=63)] = None,
    provider: Annotated[str | None, Query(max_length=63)] = None,
    subject: Annotated[str | None, Query(max_length=255)] = None,
    state: LifecycleState | None = None,
    expiring_before: UtcDatetime | None = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[ConnectionView]:
    """The connections that the app's permits cover, sorted by id."""
    filters = {
        "integration": integration,
        "provider": provider,
        "subject": subject,
        "state": state,
        "expiring_before": expiring_before,
    }
    bound = {"list": "connections", "app": call.caller.app.id, **filters}
    after = call.api.cursors.decode(cursor, call.tenant, **bound)
    async with call.api.store.read() as tx:
        found, last = await _visible_page(tx, call.caller, filters, after, limit)
        items = [await connection_view(tx, connection) for connection in found]
    next_cursor = call.api.cursors.encode(last, call.tenant, **bound) if last is not None else None
    return Page(items=items, next_cursor=next_cursor)


async def _visible_page(
    tx: Transaction, caller: Caller, filters: dict[str, object], after: str | None, limit: int
) -> tuple[list[Connection], str | None]:
    """Up to `limit` visible connections, and the id to continue after if there may be more.

    A page may be short although a cursor follows, when few of the scanned rows are visible.
    """
    found: list[Connection] = []
    for _ in range(_MAX_SCANS):
        batch = await tx.connections.page(caller.tenant, **filters, after=after, limit=_SCAN_ROWS)  # pyright: ignore[reportArgumentType]  # the filters' types differ by name
        for connection in batch:
            if may_see(caller.permits, integration=connection.integration, subject=connection.subject):
                if len(found) == limit:
                    return found, found[-1].id
                found.append(connection)
        if len(batch) < _SCAN_ROWS:
            return found, None
        after = batch[-1].id
    return found, after
