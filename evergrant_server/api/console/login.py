"""What needs no session: `/console/login`, where an API key is pasted once for a session of an hour, and the
style sheet and scripts of the console's pages."""

from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext
from evergrant_server.access.people import login_url, origin_of, require_same_origin, session_cookie
from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.console.key_sessions import LASTS, key_caller, key_cookie, new_key_session
from evergrant_server.api.console.visit import LOGIN, ConsoleVisit, VisitDep, console_page
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.people.sessions import end_presented_session
from evergrant_server.console.console_pages import STATIC
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.settings.types import is_loopback
from evergrant_server.store import Transaction
from evergrant_server.telemetry.traces import trace_of

router = APIRouter(include_in_schema=False)

_FORM = "console login"  # what the CSRF token of the form is bound to, beside its browser


@router.get(LOGIN)
async def show_login(visit: VisitDep) -> Response:
    """The form for an API key, and the way to the issuer where people log in: at the public URL, whose origin
    the form's answer has to come from."""
    if _is_by_another_name(visit.request, visit.api.settings.public_url):
        return redirect_response(origin_of(visit.api.settings.public_url) + LOGIN)
    response = await _login_page(visit)
    # whoever comes here by a bookmark is led to the console too
    tenant = visit.api.settings.tenant
    visit.browsers.keep_page(response, visit.browsers.page_after_login(visit.request, tenant, "/console"))
    return response


def _is_by_another_name(request: Request, public_url: str) -> bool:
    """Whether a browser of this machine came by `localhost` where the public URL says `127.0.0.1`, or so."""
    public, host = urlsplit(public_url), request.url.hostname or ""
    both_here = is_loopback(host) and is_loopback(public.hostname or "")
    return both_here and host != public.hostname and request.url.port == public.port


async def _login_page(visit: ConsoleVisit, failure: Failure | None = None) -> Response:
    api = visit.api
    tenant = Tenant(api.settings.tenant)
    async with api.store.read() as tx:
        rule = await tx.admin_logins.of_tenant(tenant)
    html = visit.pages.render(
        "login.html",
        title="Evergrant console",
        csrf=visit.browsers.csrf_token(visit.browser, _FORM),
        login=None if rule is None else login_url(api, tenant),
        home=f"{api.settings.public_url}/console",
        minutes=int(LASTS.total_seconds() // 60),
        failure=failure,
    )
    return visit.respond(html, 200 if failure is None else failure.rule.status)


@router.post(LOGIN)
async def log_in(visit: VisitDep) -> Response:
    """Exchange the key for a session. The key is neither kept nor sent back."""
    api = visit.api
    try:
        require_same_origin(api, visit.request)
        _, fields = await visit.browsers.read_form(visit.request, _FORM)
        caller = await _caller_of(api, fields.get("key", "").strip())
    except Failure as failure:
        return await _login_page(visit, failure)
    session, cookie = new_key_session(api, caller)

    async def write(tx: Transaction) -> None:
        await tx.key_sessions.add(session)
        context = trace_of(visit.request).request_context(caller.by)
        detail = {"app": caller.app.name, "session": session.id, "until": session.expires_at.isoformat()}
        await record(
            tx, session.tenant, AuditAction.KEY_LOGGED_IN, session.key_id, context, api.clock.now(), **detail
        )

    await run_transaction(api.store, write)
    response = redirect_response(visit.browsers.page_after_login(visit.request, session.tenant, "/console"))
    visit.browsers.begin_session(response, key_cookie(api.settings.public_url), cookie, LASTS)
    return response


async def _caller_of(api: ApiContext, key: str) -> Caller:
    """The app of a pasted key. Raises Failure UNAUTHENTICATED in words for the page."""
    try:
        caller = await api.authenticator.caller_of(key)
    except Failure as failure:
        if failure.code is ErrorCode.UNAUTHENTICATED and failure.detail == failure.rule.meaning:
            failure.detail = "This isn't an API key of this server: check that you pasted all of it."
        raise
    if caller.credential.method is not AuthenticationMethod.API_KEY:
        raise Failure(ErrorCode.UNAUTHENTICATED, "Paste an API key, which begins with evg_key_.")
    return caller


@router.post("/console/logout")
@console_page
async def log_out(visit: VisitDep) -> Response:
    """End this browser's sessions: of the key, and of the person."""
    await visit.read_form()
    api, request = visit.api, visit.request
    by_key = await key_caller(api, request)

    async def end(tx: Transaction) -> None:
        await end_presented_session(tx, api, request)
        if by_key is not None:
            key = by_key.session.key_id
            await tx.key_sessions.delete(by_key.session)
            await visit.call.record(tx, AuditAction.SESSION_ENDED, by_key.session.id, key=key)

    await run_transaction(api.store, end)
    response = redirect_response(LOGIN)
    url = api.settings.public_url
    for name in (key_cookie(url), session_cookie(url)):
        visit.browsers.end_session(response, name)
    return response


@router.get("/console/static/{name}")
async def get_static(name: str) -> Response:
    """The console's style sheet and scripts: files of this repository, and no other origin's."""
    if name not in STATIC:
        raise Failure(ErrorCode.NOT_FOUND)
    content, kind = STATIC[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "public, max-age=3600"})
