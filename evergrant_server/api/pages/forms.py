"""Reads the forms of the subject's pages and checks their CSRF tokens."""

from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.requests import Request

from evergrant_server.api.pages.browser import BrowserSessions
from evergrant_server.core.errors import ErrorCode, Failure

_MAX_BYTES = 4096
_MAX_FIELDS = 10


@dataclass(frozen=True)
class SubmittedForm:
    """The fields, and the cookie of the browser that sent them."""

    browser: str
    fields: dict[str, str]


async def read_form(request: Request, browsers: BrowserSessions, link: str) -> SubmittedForm:
    """The form of this link's page. Raises Failure CALLBACK_INVALID for another site's form, BODY_TOO_LARGE.

    Every route that takes a form calls it first. The cookie is `SameSite=Lax`, so a form of another
    site has none; the CSRF token is bound to this browser and this link.
    """
    browser = browsers.cookie_of(request)
    fields = await _fields(request)
    if browser is None or not browsers.is_valid_csrf(fields.get("csrf", ""), browser, link):
        raise Failure(
            ErrorCode.CALLBACK_INVALID,
            "The form was not sent from this page, or the browser doesn't store cookies.",
        )
    return SubmittedForm(browser, fields)


async def _fields(request: Request) -> dict[str, str]:
    body = await request.body()
    if len(body) > _MAX_BYTES:
        raise Failure(ErrorCode.BODY_TOO_LARGE)
    try:
        return dict(parse_qsl(body.decode("ascii"), max_num_fields=_MAX_FIELDS))
    except ValueError:
        return {}
