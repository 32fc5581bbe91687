# pyright: basic
# Django has no types.
"""The piece for Django: `path("evergrant/", include(consent_urls(...)))` in `urlpatterns`.

The verifier is kept in `request.session`. `connect` is subject to Django's CSRF check.
"""

from collections.abc import Callable
from typing import Any, cast

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.views.decorators.http import require_GET, require_POST

from evergrant.errors import EvergrantError
from evergrant.sync_client import Evergrant
from evergrant.web.session import AppPages, ConsentReturn, challenge_in


def consent_urls(
    evergrant: Evergrant, *, subject: Callable[[HttpRequest], str | None], after: str, login: str
) -> tuple[list[Any], str]:
    """Routes that begin and confirm consents, as `evergrant.web` describes; the argument of `include`.

    `subject` is the subject of the person who is logged in, None or "" without a login: with Django's own
    users `lambda request: request.user.get_username()`.
    """
    pages = AppPages(after, login)

    @require_POST
    def connect(request: HttpRequest, integration: str) -> HttpResponse:
        if not (person := subject(request)):
            return HttpResponseRedirect(pages.logging_in(pages.after))
        return_to = request.build_absolute_uri(reverse("evergrant:connected"))
        challenge = challenge_in(cast(Any, request).session)
        try:
            opened = evergrant.connect(integration, person, return_to=return_to, challenge=challenge)
        except EvergrantError as error:
            return HttpResponseRedirect(pages.failed(error))
        return HttpResponseRedirect(opened.connect_url or pages.ended(opened))

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

    patterns = [
        path("connect/<str:integration>", connect, name="connect"),
        path("connected", connected, name="connected"),
    ]
    return patterns, "evergrant"
