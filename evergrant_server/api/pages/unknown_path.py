"""The answer to an address that no route has: a page for a browser, a problem document for a program."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from evergrant_server.api.http.request_errors import path_that_is_near
from evergrant_server.api.pages.browser import html_response


async def answer_unknown_path(request: Request, error: Exception) -> Response:
    """404 in either form. Browsers that load a page accept HTML by name (Fetch section 2.2.5)."""
    if "text/html" not in request.headers.get("accept", ""):
        return await request.app.exception_handlers[HTTPException](request, error)
    page = request.app.state.templates.home(lost=True, near=path_that_is_near(request))
    return html_response(page, 404)
