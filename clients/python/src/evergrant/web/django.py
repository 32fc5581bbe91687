# pyright: basic
# Django has no types.
"""The piece for Django: `path("evergrant/", include(consent_urls(...)))` in `urlpatterns`.

The verifier is kept in `request.session`. POSTs are subject to Django's CSRF check,
whose token `connections` hands to the element.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.middleware.csrf import get_token
from django.urls import path, reverse
from django.views.decorators.http import require_GET, require_POST

from evergrant.errors import EvergrantError
from evergrant.sync_client import Evergrant
from evergrant.web.session import AppPages, Asks, ConsentReturn, Headers, Reply, challenge_in, is_to_end
from evergrant.web.settings_page import REASON, Offer


def consent_urls(
    evergrant: Evergrant,
    *,
    subject: Callable[[HttpRequest], str | None],
    after: str,
    login: str,
    offers: Sequence[Offer] = (),
) -> tuple[list[Any], str]:
    """Routes that begin, confirm, list and end connections, as `evergrant.web` describes; the argument of
    `include`.

    `subject` is the subject of the person who is logged in, None or "" without a login: with Django's own
    users `lambda request: request.user.get_username()`.
    """
    pages = AppPages(after, login, offers)
    patterns = [*_consents(evergrant, pages, subject), *_accounts(evergrant, pages, subject)]
    return patterns, "evergrant"


def _consents(
    evergrant: Evergrant, pages: AppPages, subject: Callable[[HttpRequest], str | None]
) -> list[Any]:
    """The routes that begin a consent and confirm it."""

    @require_POST
    def connect(request: HttpRequest, integration: str) -> HttpResponse:
        person = subject(request)
        if (refused := pages.refused(_headers(request), person)) is not None:
            return _response(refused)
        return_to = str(request.build_absolute_uri(reverse("evergrant:connected")))
        challenge = challenge_in(cast(Any, request).session)
        asks = Asks(label=_label(request), return_to=return_to, challenge=challenge)
        try:
            opened = evergrant.connect(integration, str(person), **asks)
        except EvergrantError as error:
            return _response(pages.not_opened(error, integration, _headers(request)))
        return _response(pages.opened(opened, _headers(request)))

    @require_GET
    def connected(request: HttpRequest) -> HttpResponse:
        if not (person := subject(request)):
            return HttpResponseRedirect(pages.logging_in(request.get_full_path()))
        came = ConsentReturn.read(request.GET, cast(Any, request).session)
        if came is None:
            return HttpResponseRedirect(pages.ended_without_code(request.GET))
        try:
            connection = evergrant.confirm(came.connection_id, came.code, person, came.verifier)
        except EvergrantError as error:
            return HttpResponseRedirect(pages.failed(error))
        return HttpResponseRedirect(connection.connect_url or pages.ended(connection))

    return [
        path("connect/<str:integration>", connect, name="connect"),
        path("connected", connected, name="connected"),
    ]


def _accounts(
    evergrant: Evergrant, pages: AppPages, subject: Callable[[HttpRequest], str | None]
) -> list[Any]:
    """The routes that list a person's connections and end one."""

    @require_GET
    def connections(request: HttpRequest) -> HttpResponse:
        person = subject(request)
        if (refused := pages.refused(_headers(request), person)) is not None:
            return _response(refused)
        try:
            rows = list(evergrant.connections(subject=person, accounts=True))
        except EvergrantError as error:
            return _response(pages.trouble(error))
        header = settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-")
        return _response(pages.shown(rows, request.GET, {header: get_token(request)}))

    @require_POST
    def disconnect(request: HttpRequest, integration: str) -> HttpResponse:
        person = subject(request)
        if (refused := pages.refused(_headers(request), person)) is not None:
            return _response(refused)
        try:
            for connection in evergrant.connections(integration=integration, subject=person):
                if is_to_end(connection, _label(request)):
                    evergrant.revoke(connection.id, REASON)
        except EvergrantError as error:
            return _response(pages.not_opened(error, integration, _headers(request)))
        return _response(pages.disconnected(_headers(request)))

    return [
        path("connections", connections, name="connections"),
        path("disconnect/<str:integration>", disconnect, name="disconnect"),
    ]


def _headers(request: HttpRequest) -> Headers:
    return cast(Any, request).headers


def _label(request: HttpRequest) -> str:
    return cast(str, request.GET.get("label", "default"))


def _response(reply: Reply) -> HttpResponse:
    if reply.location is not None:
        return HttpResponse(status=reply.status, headers={"Location": reply.location})
    if reply.body is None:
        return HttpResponse(status=reply.status)
    return JsonResponse(reply.body, status=reply.status, headers={"Cache-Control": "no-store"})
