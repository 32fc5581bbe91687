"""Which account a connection is for: said by an app, or by the subject on the connect page."""

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server import audit
from evergrant_server.api.connections import view_of
from evergrant_server.api.forms import form_of
from evergrant_server.api.guards import Asking, By, IdempotencyKey, With, visible_connection
from evergrant_server.api.idempotency import Answer, Once
from evergrant_server.api.outgoing import signal
from evergrant_server.api.shapes import ChooseBody
from evergrant_server.api.subjects import SUBJECT, as_page, subjects_of
from evergrant_server.api.tracing import trace_of
from evergrant_server.api.transactions import committed
from evergrant_server.api.views import ConnectionView
from evergrant_server.core.access import Action
from evergrant_server.core.account import FollowUp
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.choice import SIGNAL_CHOICE_MADE, ChoiceMade
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.consent import ConsentStatus, hash_of_link
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.message import Asked
from evergrant_server.store import Tx

router = APIRouter(tags=["connections"])
pages = APIRouter(tags=["pages"], default_response_class=HTMLResponse)


@router.post("/v1/connections/{connection_id}/choose", response_model=ConnectionView)
async def choose(
    connection_id: str,
    body: ChooseBody,
    request: Request,
    parts: With,
    caller: Asking,
    asked: By,
    key: IdempotencyKey = None,
) -> Response:
    """Say which of its `choices` the connection is for. It may be said again, for another one."""
    once = Once(request, caller, key, body)

    async def write(tx: Tx) -> Answer:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT)
        after = await chosen(tx, connection, body.choice, asked, parts.clock)
        return Answer.of(200, await view_of(tx, after))

    answer = await once.committed(parts, write)
    parts.relay.nudge()
    return answer.response()


@pages.post("/connect/{link}/choice")
@as_page
async def chose(request: Request, link: str) -> Response:
    """The subject chose, in the browser that consented. Once: the page is no standing right to choose."""
    subjects = subjects_of(request)
    form = (await form_of(request, subjects.browsers, link)).fields

    async def write(tx: Tx) -> Connection:
        going = await subjects.going(tx, await tx.consents.by_link(hash_of_link(link)))
        mine = subjects.browsers.is_bound(request, going.consent.browser_hash)
        if going.consent.status is not ConsentStatus.DONE or not mine:
            raise Failure(Code.CALLBACK_INVALID, "This link was opened in another browser.")
        if going.connection.follow_up is not FollowUp.CHOOSING:
            if form.get("choice") == going.connection.choice:  # the button was pressed twice
                return going.connection
            raise Failure(Code.CALLBACK_INVALID, "This choice was made already.")
        asked = trace_of(request).asked_by(SUBJECT)
        return await chosen(tx, going.connection, form.get("choice", ""), asked, subjects.parts.clock)

    await committed(subjects.parts.store, write)
    subjects.parts.relay.nudge()
    async with subjects.parts.store.read() as tx:
        going = await subjects.going(tx, await tx.consents.by_link(hash_of_link(link)))
    return await subjects.shown(request, going)


async def chosen(tx: Tx, connection: Connection, choice: str, asked: Asked, clock: Clock) -> Connection:
    """Row, facts, audit and outbox in one transaction.

    Raises Failure INVALID_REQUEST for what is none of the choices, and what ended the connection.
    """
    if connection.state.final or connection.state is State.REVOKING:
        raise Failure(connection.reason or Code.CONNECTION_REVOKED, connection_id=connection.id)
    grant = await tx.grants.get(connection.tenant, connection.id)
    option = next((it for it in (grant.options if grant else ()) if it.id == choice), None)
    if grant is None or option is None:
        raise Failure(Code.INVALID_REQUEST, "That is none of the connection's choices.", field="choice")
    now = clock.now()
    saved = await tx.connections.replace(connection.chosen(option, now), expected=connection.revision)
    await tx.grants.tell(saved, grant.model_copy(update={"metadata": grant.metadata | option.metadata}))
    entry = AuditEntry(
        tenant=saved.tenant,
        at=now,
        action=AuditAction.ACCOUNT_CHOSEN,
        object=saved.id,
        asked=asked,
        detail={"choice": option.id, "of": len(grant.options)},
    )
    await audit.append(tx, entry)
    await tx.outbox.add(signal(saved, SIGNAL_CHOICE_MADE, ChoiceMade(choice=option.id, asked=asked), now))
    return saved
