"""`/me`: what is connected for a person, what uses it, and what they let in, each ended by a button; and what
waits for their decision.

The person is whom the login of the tenant's OAuth clients names (`PUT /v1/client-login`): the subject of
their connections. They see and end what is theirs, and nothing else.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from evergrant_server import audit
from evergrant_server.access.context import integration_spec
from evergrant_server.access.people import login_url
from evergrant_server.access.person_ends import end_family
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.agents.delegations import end_delegation
from evergrant_server.api.audit_proofs import receipt_view
from evergrant_server.api.connections.commands import REVOKE_ATTEMPTS, request_revocation
from evergrant_server.api.connections.view import account_name, asking_app
from evergrant_server.api.decisions.own_approvals import (
    decide_approval,
    deciding_call,
    shown_approval,
    waiting_approvals,
)
from evergrant_server.api.pages.authorization.session import end_session, live_subject
from evergrant_server.api.pages.browser import form_of, html_response, redirect_response
from evergrant_server.api.pages.login import begin_client_login, clients_issuer
from evergrant_server.api.pages.session import (
    ME_PATH,
    PagesDep,
    SubjectPages,
    html_route,
    provider_display_name,
)
from evergrant_server.audit.checkpoints import proofs
from evergrant_server.audit.records import Window
from evergrant_server.console.pages import OwnAccount, OwnProgram, OwnUse, Pages
from evergrant_server.core.agents.delegations import chain_problem
from evergrant_server.core.audit import AuditAction, AuditEntry, AuditRecord
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.login import is_same_subject
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, DelegationId, Tenant, TokenFamilyId, is_id
from evergrant_server.core.oauth.authorizations import FamilyEnd
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.requests import SubjectSession
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction
from evergrant_server.store.audit_tables import LEASE_ACTIONS
from evergrant_server.telemetry.alarms import unless_broken

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_MOST = 100  # of connections, programs and delegations on the page
_USES = 25  # on the page of a connection
_REASON = "ended by its person"
_USED = Window(actions=LEASE_ACTIONS)
_OFF = "No login for people is set up here: an admin does it with evergrant clients login."
_DONE = {
    "connection": "It is ended: no app gets in any more. A worker has the provider confirm it.",
    "program": "The program is out. What it holds counts no more.",
    "approved": "You have approved it.",
    "denied": "You have denied it.",
}
me_page = partial(html_route, page=Pages.not_shown)


@dataclass(frozen=True)
class Me:
    """Who looks at the page, and by which rule they are recognized."""

    rule: ClientLogin
    session: SubjectSession

    @property
    def tenant(self) -> Tenant:
        return self.rule.tenant

    def owns(self, subject: str) -> bool:
        return is_same_subject(self.rule.login, self.session.subject, subject)

    @property
    def query(self) -> str:
        return urlencode({"tenant": self.tenant})


class _LoggedOut(NamedTuple):
    rule: ClientLogin


async def _who(pages: SubjectPages, tenant: str) -> Me | _LoggedOut:
    """Raises Failure CLIENTS_OFF, TENANT_DISABLED, CLIENT_REJECTED."""
    named = Tenant(tenant or pages.api.settings.tenant)
    async with pages.api.store.read() as tx:
        if await tx.client_logins.of_tenant(named) is None:  # also of a tenant that there isn't
            raise Failure(ErrorCode.CLIENTS_OFF, _OFF)
        rule, _ = await clients_issuer(tx, named)
        session = await live_subject(pages, tx, rule)
    return _LoggedOut(rule) if session is None else Me(rule, session)


async def _require_me(pages: SubjectPages, tenant: str) -> Me:
    """Raises Failure UNAUTHENTICATED without a session."""
    person = await _who(pages, tenant)
    if isinstance(person, _LoggedOut):
        raise Failure(ErrorCode.UNAUTHENTICATED, "Your login is over: open the page again.")
    return person


@router.get(ME_PATH)
@me_page
async def show_me(pages: PagesDep, tenant: str = "", done: str = "") -> Response:
    """Every connection made for the person, and every program that acts for them."""
    person = await _who(pages, tenant)
    if isinstance(person, _LoggedOut):
        return await begin_client_login(pages, person.rule, urlencode({"tenant": person.rule.tenant}))
    async with pages.api.store.read() as tx:
        accounts = [await _account(tx, pages, connection) for connection in await _live(tx, person)]
        accounts.sort(key=lambda row: (row.provider.name.casefold(), row.account or "", row.connection.label))
        programs = [*await _programs(tx, pages, person), *await _agents(tx, pages, person)]
        has_login = await unless_broken(tx.admin_logins.of_tenant(person.tenant)) is not None
    call = await deciding_call(pages, person.tenant, person.session.person)
    page = pages.templates.me(
        person=person.session.person.name or person.session.subject,
        accounts=accounts,
        programs=programs,
        approvals=None if call is None else await waiting_approvals(call),
        decides_elsewhere=call is None and has_login,
        said=_DONE.get(done),
        query=person.query,
        now=pages.now,
        csrf=_csrf(pages, person),
    )
    return html_response(page)


@router.get(ME_PATH + "/connections/{connection_id}")
@me_page
async def show_my_connection(pages: PagesDep, connection_id: str, tenant: str = "") -> Response:
    """Who used one of the person's connections, and its end."""
    person = await _require_me(pages, tenant)
    async with pages.api.store.read() as tx:
        connection = await _my_connection(tx, person, connection_id)
        account = await _account(tx, pages, connection)
        records = await _uses(tx, connection, _USES)
    page = pages.templates.my_connection(
        account=account,
        uses=[_use(record) for record in records],
        query=person.query,
        now=pages.now,
        csrf=_csrf(pages, person),
    )
    return html_response(page)


@router.get(ME_PATH + "/connections/{connection_id}/receipts/{shard}/{index}", response_model=None)
@me_page
async def get_my_receipt(
    pages: PagesDep, connection_id: str, shard: str, index: str, tenant: str = ""
) -> Response:
    """The receipt of one use, for `evergrant audit verify`. Raises Failure NOT_FOUND for another's record."""
    person = await _require_me(pages, tenant)
    async with pages.api.store.read() as tx:
        connection = await _my_connection(tx, person, connection_id)
        number = int(index) if index.isascii() and index.isdecimal() and len(index) < 19 else -1
        receipt = await proofs.receipt(tx, person.tenant, shard, number) if number >= 0 else None
        if receipt is None or not _is_use_of(connection, receipt.record.body):
            raise Failure(ErrorCode.NOT_FOUND)
        view = receipt_view(receipt)
    name = f"receipt-{shard}-{number}.json"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(view.model_dump_json(indent=1), 200, headers, "application/json")


def _is_use_of(connection: Connection, body: str | None) -> bool:
    record = json.loads(body) if body is not None and body.startswith("{") else {}
    return record.get("object") == connection.id and record.get("action") in LEASE_ACTIONS


@router.post(ME_PATH + "/connections/{connection_id}/end", openapi_extra=form_of("csrf"))
@me_page
async def end_my_connection(pages: PagesDep, connection_id: str, tenant: str = "") -> Response:
    """Revoke one of the person's connections, at once and at its provider."""
    person = await _of_form(pages, tenant)

    async def write(tx: Transaction) -> None:
        connection = await _my_connection(tx, person, connection_id)
        if not (connection.state.is_final or connection.state is LifecycleState.REVOKING):
            entry = AuditEntry(
                tenant=connection.tenant,
                at=pages.now,
                action=AuditAction.REVOCATION_REQUESTED,
                object=connection.id,
                context=pages.context,
                detail={"reason": _REASON},
            )
            await request_revocation(tx, connection, _REASON, entry)

    await run_transaction(pages.api.store, write, tries=REVOKE_ATTEMPTS)
    pages.api.relay.notify()
    return _back(person, "connection")


@router.post(ME_PATH + "/programs/{program_id}/end", openapi_extra=form_of("csrf"))
@me_page
async def end_my_program(pages: PagesDep, program_id: str, tenant: str = "") -> Response:
    """End what the person let in: a client with its tokens, or an agent with all that was delegated by it."""
    person = await _of_form(pages, tenant)

    async def write(tx: Transaction) -> None:
        if is_id(program_id, "dlg"):
            delegation = require_found(await tx.delegations.get(person.tenant, DelegationId(program_id)))
            _require_own(person, delegation.subject)
            if delegation.stopped_at is None:
                await end_delegation(tx, delegation, _REASON, pages.context, pages.now)
            return
        family = require_found(await tx.token_families.to_end(person.tenant, TokenFamilyId(program_id)))
        _require_own(person, family.subject)
        if family.ended_at is None:
            await end_family(tx, family, FamilyEnd.ENDED, pages.context, pages.now)

    await run_transaction(pages.api.store, write, tries=REVOKE_ATTEMPTS)
    return _back(person, "program")


@router.get(ME_PATH + "/approvals")
@me_page
async def log_in_to_decide(pages: PagesDep, tenant: str = "") -> Response:
    """Send a person who decides to the login of those who administer, which leads back to their own page."""
    person = await _require_me(pages, tenant)
    return _to_login(pages, person, ME_PATH)


@router.get(ME_PATH + "/approvals/{approval_id}")
@me_page
async def show_my_approval(pages: PagesDep, approval_id: str, tenant: str = "") -> Response:
    """Exactly what waits for the person's decision, and the buttons."""
    person = await _require_me(pages, tenant)
    path = f"{ME_PATH}/approvals/{approval_id}"
    call = await deciding_call(pages, person.tenant, person.session.person)
    if call is None or call.caller.session is None:
        return _to_login(pages, person, path)
    again = None
    if not call.caller.session.is_stepped_up(pages.now):
        again = login_url(pages.api, person.tenant, step_up=True)
    page = pages.templates.my_approval(
        decision=await shown_approval(call, approval_id),
        step_up=again,
        query=person.query,
        now=pages.now,
        csrf=_csrf(pages, person),
    )
    response = html_response(page)
    # with no-referrer a browser sends `Origin: null` beside the form (Fetch section 3.1)
    response.headers["Referrer-Policy"] = "same-origin"
    pages.browsers.keep_page(response, path)
    return response


@router.post(ME_PATH + "/approvals/{approval_id}/{decision}", openapi_extra=form_of("csrf"))
@me_page
async def decide_my_approval(pages: PagesDep, approval_id: str, decision: str, tenant: str = "") -> Response:
    """Approve or deny what waits, as its route in the API does."""
    person = await _of_form(pages, tenant)
    call = await deciding_call(pages, person.tenant, person.session.person)
    if call is None:
        return _to_login(pages, person, f"{ME_PATH}/approvals/{approval_id}")
    await decide_approval(call, approval_id, decision)
    return _back(person, "approved" if decision == "approve" else "denied")


def _to_login(pages: SubjectPages, person: Me, path: str) -> Response:
    response = redirect_response(login_url(pages.api, person.tenant))
    pages.browsers.keep_page(response, path)
    return response


@router.post(ME_PATH + "/log-out", openapi_extra=form_of("csrf"))
@me_page
async def leave_my_page(pages: PagesDep, tenant: str = "") -> Response:
    """End the session of this browser."""
    person = await _of_form(pages, tenant)
    await run_transaction(pages.api.store, lambda tx: end_session(pages, tx, person.session))
    return html_response(pages.templates.logged_out())


def _csrf(pages: SubjectPages, person: Me) -> str:
    return pages.browsers.csrf_token(pages.browsers.cookie_of(pages.request) or "", person.session.id)


async def _of_form(pages: SubjectPages, tenant: str) -> Me:
    """Whose form it is. Raises Failure CALLBACK_INVALID for another site's."""
    person = await _require_me(pages, tenant)
    await pages.browsers.read_form(pages.request, person.session.id)
    return person


def _back(person: Me, done: str) -> Response:
    return redirect_response(f"{ME_PATH}?{person.query}&done={done}")


def _require_own(person: Me, subject: str) -> None:
    """Raise Failure NOT_FOUND for another's, as for what isn't there."""
    if not person.owns(subject):
        raise Failure(ErrorCode.NOT_FOUND)


async def _my_connection(tx: Transaction, person: Me, id: str) -> Connection:
    """Raises Failure NOT_FOUND."""
    known = is_id(id, "con")
    connection = await tx.connections.get_authentic(person.tenant, ConnectionId(id)) if known else None
    connection = require_found(connection)
    _require_own(person, connection.subject)
    return connection


async def _live(tx: Transaction, person: Me) -> list[Connection]:
    """The person's connections that haven't ended, `_MOST` at the most."""
    live, after, has_more = list[Connection](), None, True
    while has_more and len(live) < _MOST:
        batch = await tx.connections.page(
            person.tenant, subject=person.session.subject, after=after, limit=_MOST
        )
        live += [row for row in batch if person.owns(row.subject) and not row.state.is_final]
        after, has_more = batch.last, batch.has_more
    return live[:_MOST]


async def _account(tx: Transaction, pages: SubjectPages, connection: Connection) -> OwnAccount:
    """A connection as its person sees it."""
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    name, known_as = connection.provider, connection.provider
    if integration is not None:
        spec = await integration_spec(tx, pages.api.registry, integration)
        name = provider_display_name(spec, integration)
        known_as = name if spec.discovery else spec.name
    last = await _uses(tx, connection, 1)
    return OwnAccount(
        connection=connection,
        provider=pages.templates.logos.party(name, "provider", known_as),
        account=await account_name(tx, connection),
        last=_use(last[0]) if last else None,
        asked_by=await asking_app(tx, connection),
    )


async def _uses(tx: Transaction, connection: Connection, limit: int) -> list[AuditRecord]:
    """The newest leases and calls."""
    named = {"object": connection.id, "window": _USED}
    return await audit.page(tx, connection.tenant, **named, limit=limit, newest_first=True)


def _use(record: AuditRecord) -> OwnUse:
    """One use in plain words."""
    what = "got access"
    if record.action is AuditAction.PROXY_CALLED:
        parts = [str(record.detail[name]) for name in ("method", "host", "path") if record.detail.get(name)]
        what = f"called {' '.join(parts)}" if parts else "called the API"
    by = record.context.by.partition(":")[2] or record.context.by
    return OwnUse(record.at, by, what, f"{record.shard}/{record.seq}")


async def _programs(tx: Transaction, pages: SubjectPages, person: Me) -> list[OwnProgram]:
    """The clients that the person authorized, such as coding tools."""
    families = await tx.token_families.live(person.tenant, _MOST, subject=person.session.subject)
    calls = await tx.token_families.last_calls(person.tenant, [family.id for family in families])
    idle = pages.api.settings.oauth_idle
    programs: list[OwnProgram] = []
    for family in families:
        if family.is_live(pages.now, idle):
            client = await tx.oauth_clients.by_client_id(family.client_id)
            name = family.client_id if client is None else client.name or "A program without a name"
            reach = "all of your connections" if family.connection_id is None else "one of your connections"
            used = calls.get(family.id)
            programs.append(OwnProgram(family.id, name, reach, family.created_at, used, family.connection_id))
    return programs


async def _agents(tx: Transaction, pages: SubjectPages, person: Me) -> list[OwnProgram]:
    """The agents to which an app has delegated for the person."""
    rows = await tx.delegations.page(person.tenant, None, _MOST, subject=person.session.subject)
    agents: list[OwnProgram] = []
    for delegation in rows:
        chain = await tx.delegations.chain(delegation)
        if pages.now >= delegation.expires_at or chain_problem(chain, pages.now) is not None:
            continue
        app = await tx.access.app(person.tenant, delegation.app_id)
        named = delegation.reach.connections
        reach = "what its permits allow" if named is None else f"{len(named)} of your connections"
        name = app.name if app is not None else delegation.app_id
        agents.append(OwnProgram(delegation.id, name, reach, delegation.created_at, None, None))
    return agents
