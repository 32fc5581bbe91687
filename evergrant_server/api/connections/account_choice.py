"""Which account a connection is for: said by an app, or by the subject on the connect page."""

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server import audit
from evergrant_server.api.connections.routes import connection_view
from evergrant_server.api.http.dependencies import (
    CallerDep,
    ContextDep,
    IdempotencyKey,
    RequestContextDep,
    visible_connection,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.api.http.requests import ChooseBody
from evergrant_server.api.http.responses import ConnectionView
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.api.pages.forms import read_form
from evergrant_server.api.pages.session import SUBJECT_ACTOR, html_route, subject_pages
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.account import FollowUp
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus, hash_link
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import AccountChosen
from evergrant_server.core.messages.names import SignalName
from evergrant_server.store import Transaction

router = APIRouter(tags=["connections"])
page_router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)


@router.post("/v1/connections/{connection_id}/choose", response_model=ConnectionView)
async def choose_account(
    connection_id: str,
    body: ChooseBody,
    request: Request,
    parts: ContextDep,
    caller: CallerDep,
    asked: RequestContextDep,
    key: IdempotencyKey = None,
) -> Response:
    """Say which of its `choices` the connection is for. It may be said again, for another one."""
    once = IdempotentCommand(request, caller, key, body)

    async def write(tx: Transaction) -> CommandResponse:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT)
        after = await save_account_choice(tx, connection, body.choice, asked, parts.clock)
        return CommandResponse.from_view(200, await connection_view(tx, after))

    answer = await once.run(parts, write)
    parts.relay.notify()
    return answer.response()


@page_router.post("/connect/{link}/choice")
@html_route
async def choose_account_on_page(request: Request, link: str) -> Response:
    """The subject chose, in the browser that consented. Once: the page is no standing right to choose."""
    subjects = subject_pages(request)
    form = (await read_form(request, subjects.browsers, link)).fields

    async def write(tx: Transaction) -> Connection:
        going = await subjects.load_session(tx, await tx.consents.by_link(hash_link(link)))
        mine = subjects.browsers.is_bound(request, going.consent.browser_hash)
        if going.consent.status is not ConsentStatus.DONE or not mine:
            raise Failure(ErrorCode.CALLBACK_INVALID, "This link was opened in another browser.")
        if going.connection.follow_up is not FollowUp.CHOOSING:
            if form.get("choice") == going.connection.choice:  # the button was pressed twice
                return going.connection
            raise Failure(ErrorCode.CALLBACK_INVALID, "This choice was made already.")
        asked = trace_of(request).request_context(SUBJECT_ACTOR)
        return await save_account_choice(
            tx, going.connection, form.get("choice", ""), asked, subjects.parts.clock
        )

    await run_transaction(subjects.parts.store, write)
    subjects.parts.relay.notify()
    async with subjects.parts.store.read() as tx:
        going = await subjects.load_session(tx, await tx.consents.by_link(hash_link(link)))
    return await subjects.outcome_response(request, going)


async def save_account_choice(
    tx: Transaction, connection: Connection, choice: str, asked: RequestContext, clock: Clock
) -> Connection:
    """Row, facts, audit and outbox in one transaction.

    Raises Failure INVALID_REQUEST for what is none of the choices, and what ended the connection.
    """
    if connection.state.is_final or connection.state is LifecycleState.REVOKING:
        raise Failure(connection.reason or ErrorCode.CONNECTION_REVOKED, connection_id=connection.id)
    grant = await tx.grants.get(connection.tenant, connection.id)
    option = next((it for it in (grant.options if grant else ()) if it.id == choice), None)
    if grant is None or option is None:
        raise Failure(ErrorCode.INVALID_REQUEST, "That is none of the connection's choices.", field="choice")
    now = clock.now()
    saved = await tx.connections.replace(connection.account_chosen(option, now), expected=connection.revision)
    await tx.grants.update_facts(
        saved, grant.model_copy(update={"metadata": grant.metadata | option.metadata})
    )
    entry = AuditEntry(
        tenant=saved.tenant,
        at=now,
        action=AuditAction.ACCOUNT_CHOSEN,
        object=saved.id,
        context=asked,
        detail={"choice": option.id, "of": len(grant.options)},
    )
    await audit.append(tx, entry)
    await tx.outbox.add(
        connection_signal_message(
            saved, SignalName.ACCOUNT_CHOSEN, AccountChosen(choice=option.id, context=asked), now
        )
    )
    return saved
