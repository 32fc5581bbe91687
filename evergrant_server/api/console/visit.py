"""One request of a browser to the console: who is there, the pages of answers and failures, forms."""

import functools
import math
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Request
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.access.approvals import danger_of
from evergrant_server.access.context import ApiContext
from evergrant_server.access.people import login_url, person_caller, presented_secret, require_same_origin
from evergrant_server.api.console.forms import Form
from evergrant_server.api.console.key_sessions import key_caller
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.pages.browser import BrowserSessions, html_response, redirect_response
from evergrant_server.console.console_pages import ConsolePages, Visitor
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target
from evergrant_server.problems import field_errors, invalid_request
from evergrant_server.store.database.engine import share_connections
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.traces import trace_of

LOGIN = "/console/login"
ROWS = 25  # of a page of a list
_FORM_BYTES, _FORM_FIELDS = 32_768, 200

Choice = TypeVar("Choice", bound=StrEnum)


class ConsoleVisit:
    """The console for one request. `call` is the request as the API's routes see it."""

    call: ApiCall
    session_id: str

    def __init__(self, request: Request) -> None:
        self.request = request
        self.api: ApiContext = request.app.state.api
        self.pages: ConsolePages = request.app.state.console
        self.browsers: BrowserSessions = request.app.state.browsers
        self.browser = self.browsers.cookie_of(request) or self.browsers.new_cookie()

    async def authenticate(self) -> None:
        """Find out who is there: the app whose key was pasted, else the person who logged in.

        Raises Failure UNAUTHENTICATED, TENANT_DISABLED, APP_DISABLED, CROSS_SITE_REQUEST, RATE_LIMITED.
        """
        api, request = self.api, self.request
        require_same_origin(api, request)
        by_key = await key_caller(api, request)
        if by_key is not None:
            caller, self.session_id = by_key.caller, by_key.session.id
            api.ledger.note_use(caller.tenant, caller.credential.id)
            share_connections(caller.tenant, caller.app.id)
        else:
            presented = presented_secret(api, request)
            person = await person_caller(api, request) if presented is not None and presented[1] else None
            if person is None or person.session is None:
                raise Failure(ErrorCode.UNAUTHENTICATED)
            caller, self.session_id = person, person.session.id
        self.call = ApiCall(api, caller, trace_of(request).request_context(caller.by), request)
        await api.limits.count_request(request.scope, caller.app)

    async def read_form(self, most_bytes: int = _FORM_BYTES) -> dict[str, str]:
        """The fields of a form that one of this session's pages has sent. Raises Failure CALLBACK_INVALID,
        BODY_TOO_LARGE."""
        _, fields = await self.browsers.read_form(self.request, self.session_id, most_bytes, _FORM_FIELDS)
        return {name: text.strip() for name, text in fields.items() if name != "csrf"}

    def visitor(self) -> Visitor:
        """Who is there, for the head of each page."""
        caller, session = self.call.caller, self.call.caller.session
        return Visitor(
            name=caller.app.name if session is None else session.person.name or session.person.sub,
            kind="API key" if session is None else session.role.value.replace("_", " "),
            tenant=caller.tenant,
            audits=self.call.may_audit(Target()),
            csrf=self.browsers.csrf_token(self.browser, self.session_id),
            step_up=None if session is None else login_url(self.api, caller.tenant, step_up=True),
            old_login=session is not None and not session.is_stepped_up(self.call.now),
        )

    def show_form(
        self,
        template: str,
        title: str,
        form: Form,
        *,
        route: Callable[..., Any] | None = None,
        **values: Any,
    ) -> Response:
        """The page of a form: blank, or refused, with its problems.

        `route` is the API's that the form's act calls: an old login is told so where the route takes a fresh
        one. Without it the template decides.
        """
        if route is not None:
            values["takes_login"] = danger_of(route) is not None
        return self.show(template, title, status=form.status, form=form, **values)

    def show(self, template: str, title: str, *, status: int = 200, **values: Any) -> Response:
        """A page in the console's frame."""
        html = self.pages.render(
            template, title=title, visitor=self.visitor(), now=self.api.clock.now(), **values
        )
        return self.respond(html, status)

    async def names_of(self, actors: Iterable[str]) -> dict[str, str]:
        """The names of the people among the actors of audit records, for who sees the whole tenant."""
        names: dict[str, str] = {}
        if not self.call.may_audit(Target()):
            return names
        async with self.api.store.read() as tx:
            for by in dict.fromkeys(actor for actor in actors if actor.startswith("person:")):
                login = await audit.newest_record(
                    tx, self.call.tenant, by.removeprefix("person:"), AuditAction.PERSON_LOGGED_IN
                )
                if login is not None:
                    names[by] = str(login.detail.get("name") or login.detail.get("sub") or by)
        return names

    def respond(self, html: str, status: int = 200) -> Response:
        response = html_response(html, status, "self")
        # with no-referrer a browser sends `Origin: null` beside a form (Fetch section 3.1)
        response.headers["Referrer-Policy"] = "same-origin"
        if self.browsers.cookie_of(self.request) is None:
            self.browsers.set_cookie(response, self.browser)
        return response

    def keep_page(self, response: Response) -> Response:
        """Note the page that is shown to somebody whom a login may follow: it leads back to it."""
        session = self.call.caller.session if hasattr(self, "call") else None
        if self.request.method == "GET" and (session is not None or not hasattr(self, "call")):
            self.browsers.keep_page(response, self.request.url.path, self.request.url.query)
        return response

    def failed(self, failure: Failure) -> Response:
        """The page of a failure; for a visitor who isn't logged in the login's."""
        status = failure.rule.status
        if hasattr(self, "call"):
            response = self.show("failed.html", "This didn't work", status=status, failure=failure)
        elif failure.code is not ErrorCode.UNAUTHENTICATED:
            page = self.pages.render("refused.html", title="You are not logged in", failure=failure)
            response = self.respond(page, status)
        elif "hx-request" in self.request.headers:  # a script would put the login into a part of the page
            response = self.respond("", status)
            response.headers["HX-Redirect"] = LOGIN
        else:
            response = redirect_response(LOGIN)
        if failure.retry_after is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after)))
        return response


VisitDep = Annotated[ConsoleVisit, Depends(ConsoleVisit)]
_Endpoint = Callable[..., Awaitable[Response]]


def console_page(endpoint: _Endpoint) -> _Endpoint:
    """Decorate a route for visitors who are logged in. Its failures are shown as pages."""

    @functools.wraps(endpoint)
    async def shown(visit: ConsoleVisit, **values: Any) -> Response:
        try:
            await visit.authenticate()
            return visit.keep_page(await endpoint(visit, **values))
        except ValidationError as error:
            first = field_errors(error)[0]
            return visit.failed(invalid_request(first["field"], f"{first['field']}: {first['problem']}"))
        except Failure as failure:
            report_broken_authority(failure)
            return visit.keep_page(visit.failed(failure))

    return shown


def pages_of(path: str, cursor: str, next_cursor: str | None, **kept: str) -> dict[str, Any]:
    """The links to the first and the next page of a list, which keep its filters."""
    following = f"?{urlencode({**kept, 'cursor': next_cursor})}" if next_cursor else None
    first = f"{path}?{urlencode(kept)}" if kept else path
    return {"next_page": following, "first_page": first if cursor else None}


def chosen(choices: type[Choice], text: str, field: str) -> Choice:
    """The member that a form names. Raises Failure INVALID_REQUEST."""
    try:
        return choices(text)
    except ValueError:
        raise invalid_request(field, f"There is no such {field}.") from None
