"""A browser: its cookie, CSRF tokens, forms, the headers of pages, and the page of an unknown address."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from evergrant_server.api.http.request_errors import path_that_is_near
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing

APPROVAL_PAGES = "/console/call-approvals"
_COOKIE_VALUE = re.compile(r"^[A-Za-z0-9_-]{43}\Z")
_MAX_FORM_BYTES, _MAX_FORM_FIELDS = 4096, 10
_PAGE_COOKIE, _PAGE_S = "evergrant-page", 600  # only a path of ours: the page asks who is there
_CONSOLE_PATH = (
    r"/console(?!/(?:login|logout|static)\b)(?:/\w[\w.-]{0,199}){0,6}(?:\?[\w.~%&=+:@/-]{1,1500})?"
)
_OWN_PATH = r"/me(?:/approvals/\w{1,40})?"  # of a person, whose tenant the login knows
_KEPT_PATH = re.compile(rf"(?:{_CONSOLE_PATH}|(?P<own>{_OWN_PATH}))\Z", re.ASCII)
_CONFIRM_COOKIE, _CONFIRM_S = "evergrant-confirm", 120  # compared with the consent's hash


class BrowserSessions:
    """Identifies a browser by a random cookie. The store keeps its hash."""

    def __init__(self, public_url: str, ring: KeyRing) -> None:
        self.secure = public_url.startswith("https://")
        # `__Host-` needs Secure, and browsers refuse Secure cookies over plain http
        self.cookie = "__Host-evergrant" if self.secure else "evergrant-dev"
        self._key = ring.derive("api.csrf")

    def cookie_of(self, request: Request) -> str | None:
        """The browser's cookie, if it has a valid one."""
        value = request.cookies.get(self.cookie, "")
        return value if _COOKIE_VALUE.match(value) else None

    @staticmethod
    def new_cookie() -> str:
        return secrets.token_urlsafe(32)

    @staticmethod
    def hash_cookie(browser: str) -> str:
        return hashlib.sha256(browser.encode()).hexdigest()

    def is_bound(self, request: Request, browser_hash: str | None) -> bool:
        """True when the request has the cookie of this hash, compared in constant time."""
        browser = self.cookie_of(request)
        presented = self.hash_cookie(browser or self.new_cookie())
        return hmac.compare_digest(presented, browser_hash or "") and browser is not None

    def csrf_token(self, browser: str, link: str) -> str:
        """The CSRF token of this browser and link: HMAC-SHA256 over both."""
        message = f"{self.hash_cookie(browser)}:{self.hash_cookie(link)}"
        return hmac.new(self._key, message.encode(), hashlib.sha256).hexdigest()

    async def read_form(
        self,
        request: Request,
        link: str,
        most_bytes: int = _MAX_FORM_BYTES,
        most_fields: int = _MAX_FORM_FIELDS,
    ) -> tuple[str, dict[str, str]]:
        """The browser and the fields of the form of this link's page; a repeated field's values have spaces
        between.

        Raises Failure CALLBACK_INVALID for another site's form, BODY_TOO_LARGE. Every route that takes
        a form calls it first. The cookie is `SameSite=Lax`, so a form of another site has none; the CSRF
        token is bound to this browser and this link.
        """
        if len(await request.body()) > most_bytes:
            raise Failure(ErrorCode.BODY_TOO_LARGE)
        fields: dict[str, str] = {}
        for name, text in await _form_fields(request, most_bytes, most_fields):
            fields[name] = f"{fields[name]} {text}" if name in fields else text
        browser = self.cookie_of(request)
        if browser is None or not hmac.compare_digest(
            fields.get("csrf", "").encode(), self.csrf_token(browser, link).encode()
        ):
            why = "The form was not sent from this page, or the browser doesn't store cookies: allow them."
            raise Failure(ErrorCode.CALLBACK_INVALID, why)
        return browser, fields

    def set_cookie(self, response: Response, browser: str) -> None:
        response.set_cookie(self.cookie, browser, path="/", secure=self.secure, httponly=True, samesite="lax")

    def begin_session(self, response: Response, cookie: str, secret: str, lasts: timedelta) -> None:
        """Give this browser the cookie of a session."""
        rules = {"max_age": int(lasts.total_seconds()), "secure": self.secure, "httponly": True}
        response.set_cookie(cookie, secret, path="/", samesite="lax", **rules)

    def end_session(self, response: Response, cookie: str) -> None:
        response.delete_cookie(cookie, path="/", secure=self.secure, httponly=True, samesite="lax")

    def keep_page(self, response: Response, path: str, query: str = "") -> None:
        """Have this browser's next login lead back to this page of the console, with what its form asked, or
        of the person."""
        page = f"{path}?{query}" if _KEPT_PATH.match(f"{path}?{query}") else path
        if _KEPT_PATH.match(page):
            rules = {"max_age": _PAGE_S, "secure": self.secure, "httponly": True}
            response.set_cookie(_PAGE_COOKIE, page, path="/", samesite="lax", **rules)

    @staticmethod
    def page_after_login(request: Request, tenant: str, otherwise: str) -> str:
        """The page for which the browser was sent to log in. No other address is taken from a request."""
        page = _KEPT_PATH.match(request.cookies.get(_PAGE_COOKIE, ""))
        if page is None:
            return otherwise
        return page[0] if page["own"] is None else f"{page[0]}?tenant={tenant}"

    def set_confirm_code(self, response: Response, code: Secret) -> None:
        """Give this browser a confirm code, which the connect page shows it."""
        name, value = _CONFIRM_COOKIE, code.reveal()
        rules = {"max_age": _CONFIRM_S, "secure": self.secure, "httponly": True}
        response.set_cookie(name, value, path="/connect", samesite="lax", **rules)

    @staticmethod
    def confirm_code_of(request: Request) -> Secret | None:
        value = request.cookies.get(_CONFIRM_COOKIE, "")
        return Secret(value) if _COOKIE_VALUE.match(value) else None


async def _form_fields(request: Request, most_bytes: int, most_fields: int) -> Iterable[tuple[str, str]]:
    """The fields of a form as browsers send them; of a file its text. Nothing of what no browser sends."""
    body = await request.body()
    try:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return parse_qsl(body.decode("ascii"), max_num_fields=most_fields)
        async with request.form(max_files=1, max_fields=most_fields, max_part_size=most_bytes) as form:
            return [
                (name, (await part.read()).decode(errors="replace") if isinstance(part, UploadFile) else part)
                for name, part in form.multi_items()
            ]
    except (ValueError, HTTPException):
        return ()


def form_of(*fields: str) -> dict[str, Any]:
    """The form that a route reads, for the OpenAPI document."""
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in fields}}
    return {"requestBody": {"content": {"application/x-www-form-urlencoded": {"schema": schema}}}}


def html_response(
    html: str, status: int = 200, script: str | None = None, *, framed: bool = False
) -> Response:
    """A page whose policy allows no other origin for resources and forms, and no frame.

    `script` is the hash of its only script, which may connect to this origin. `framed` lets other sites
    show a page in which there is nothing to press but a link that opens another window.
    """
    policy = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'"
    headers = {}
    if not framed:
        policy += "; frame-ancestors 'none'"
        headers["X-Frame-Options"] = "DENY"
    if script is not None:
        policy += f"; script-src '{script}'; connect-src 'self'"
    return HTMLResponse(html, status, _security_headers({**headers, "Content-Security-Policy": policy}))


def redirect_response(url: str) -> Response:
    """303: the next request is a GET."""
    return RedirectResponse(url, 303, _security_headers({"X-Frame-Options": "DENY"}))


def _security_headers(headers: dict[str, str]) -> dict[str, str]:
    return {
        **headers,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


async def answer_unknown_path(request: Request, error: Exception) -> Response:
    """404 for an address that no route has: a page for a browser, a problem document for a program.

    Browsers that load a page accept HTML by name (Fetch section 2.2.5).
    """
    if "text/html" not in request.headers.get("accept", ""):
        return await request.app.exception_handlers[HTTPException](request, error)
    page = request.app.state.templates.home(lost=True, near=path_that_is_near(request))
    return html_response(page, 404)
