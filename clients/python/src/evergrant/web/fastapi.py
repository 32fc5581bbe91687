"""The piece for FastAPI: `app.include_router(consent_router(...), prefix="/evergrant")`.

Needs Starlette's `SessionMiddleware`, where the verifier is kept.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from evergrant.async_client import AsyncEvergrant
from evergrant.errors import EvergrantError
from evergrant.web.session import AppPages, Asks, ConsentReturn, Reply, challenge_in, is_to_end
from evergrant.web.settings_page import REASON, Offer


def consent_router(
    evergrant: AsyncEvergrant,
    *,
    subject: Callable[..., Any],
    after: str,
    login: str,
    offers: Sequence[Offer] = (),
) -> APIRouter:
    """Routes that begin, confirm, list and end connections, as `evergrant.web` describes.

    `subject` is a dependency: the subject of the person who is logged in, None without a login.
    """
    router, pages = APIRouter(), AppPages(after, login, offers)
    _add_consents(router, evergrant, pages, subject)
    _add_accounts(router, evergrant, pages, subject)
    return router


def _add_consents(
    router: APIRouter, evergrant: AsyncEvergrant, pages: AppPages, subject: Callable[..., Any]
) -> None:
    """The routes that begin a consent and confirm it."""

    @router.post("/connect/{integration}", name="evergrant_connect")
    async def connect(
        integration: str,
        request: Request,
        person: Annotated[str | None, Depends(subject)],
        label: str = "default",
    ) -> Response:
        if (refused := pages.refused(request.headers, person)) is not None:
            return _response(refused)
        return_to = str(request.url_for("evergrant_connected"))
        asks = Asks(label=label, return_to=return_to, challenge=challenge_in(request.session))
        try:
            opened = await evergrant.connect(integration, str(person), **asks)
        except EvergrantError as error:
            return _response(pages.not_opened(error, integration, request.headers))
        return _response(pages.opened(opened, request.headers))

    @router.get("/connected", name="evergrant_connected")
    async def connected(request: Request, person: Annotated[str | None, Depends(subject)]) -> Response:
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


def _add_accounts(
    router: APIRouter, evergrant: AsyncEvergrant, pages: AppPages, subject: Callable[..., Any]
) -> None:
    """The routes that list a person's connections and end one."""

    @router.get("/connections")
    async def connections(request: Request, person: Annotated[str | None, Depends(subject)]) -> Response:
        if (refused := pages.refused(request.headers, person)) is not None:
            return _response(refused)
        try:
            rows = [row async for row in evergrant.connections(subject=person, accounts=True)]
        except EvergrantError as error:
            return _response(pages.trouble(error))
        return _response(pages.shown(rows, request.query_params))

    @router.post("/disconnect/{integration}")
    async def disconnect(
        integration: str,
        request: Request,
        person: Annotated[str | None, Depends(subject)],
        label: str = "default",
    ) -> Response:
        if (refused := pages.refused(request.headers, person)) is not None:
            return _response(refused)
        try:
            rows = [row async for row in evergrant.connections(integration=integration, subject=person)]
            for connection in rows:
                if is_to_end(connection, label):
                    await evergrant.revoke(connection.id, REASON)
        except EvergrantError as error:
            return _response(pages.not_opened(error, integration, request.headers))
        return _response(pages.disconnected(request.headers))


def _response(reply: Reply) -> Response:
    if reply.location is not None:
        return _to(reply.location)
    if reply.body is None:
        return Response(status_code=reply.status)
    return JSONResponse(reply.body, reply.status, {"Cache-Control": "no-store"})


def _to(url: str) -> RedirectResponse:
    return RedirectResponse(url, 303)
