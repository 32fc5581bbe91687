"""The piece for FastAPI: `app.include_router(consent_router(...), prefix="/evergrant")`.

Needs Starlette's `SessionMiddleware`, where the verifier is kept.
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse

from evergrant.async_client import AsyncEvergrant
from evergrant.errors import EvergrantError
from evergrant.web.session import AppPages, ConsentReturn, challenge_in


def consent_router(
    evergrant: AsyncEvergrant, *, subject: Callable[..., Any], after: str, login: str
) -> APIRouter:
    """Routes that begin and confirm consents, as `evergrant.web` describes.

    `subject` is a dependency: the subject of the person who is logged in, None without a login.
    """
    router, pages = APIRouter(), AppPages(after, login)

    @router.post("/connect/{integration}", name="evergrant_connect")
    async def connect(
        integration: str, request: Request, person: Annotated[str | None, Depends(subject)]
    ) -> RedirectResponse:
        if not person:
            return _to(pages.logging_in(pages.after))
        return_to = str(request.url_for("evergrant_connected"))
        challenge = challenge_in(request.session)
        try:
            opened = await evergrant.connect(integration, person, return_to=return_to, challenge=challenge)
        except EvergrantError as error:
            return _to(pages.failed(error))
        return _to(opened.connect_url or pages.ended(opened))

    @router.get("/connected", name="evergrant_connected")
    async def connected(
        request: Request, person: Annotated[str | None, Depends(subject)]
    ) -> RedirectResponse:
        if not person:
            return _to(pages.logging_in(f"{request.url.path}?{request.url.query}"))
        came = ConsentReturn.read(request.query_params, request.session)
        if came is None:
            return _to(pages.ended_without_code(request.query_params))
        try:
            connection = await evergrant.confirm(came.connection_id, came.code, person, came.verifier)
        except EvergrantError as error:
            return _to(pages.failed(error))
        return _to(connection.connect_url or pages.ended(connection))

    return router


def _to(url: str) -> RedirectResponse:
    return RedirectResponse(url, 303)
