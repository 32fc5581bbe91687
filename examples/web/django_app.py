"""`EVERGRANT_…=… SESSION_SECRET=… python -m examples.web.django_app runserver`: a project in one file."""

import os
import sys

from django.conf import settings

settings.configure(
    SECRET_KEY=os.environ["SESSION_SECRET"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
)

from django.core.management import execute_from_command_line  # noqa: E402 it needs the settings
from django.core.wsgi import get_wsgi_application  # noqa: E402 it needs the settings
from django.http import HttpRequest, HttpResponse  # noqa: E402 it needs the settings
from django.middleware.csrf import get_token  # noqa: E402 it needs the settings
from django.urls import include, path  # noqa: E402 it needs the settings
from django.views.decorators.csrf import csrf_exempt  # noqa: E402 it needs the settings
from evergrant import Evergrant, Lease  # noqa: E402 it needs the settings
from evergrant.web.django import consent_urls  # noqa: E402 it needs the settings

BUTTON = """<form method="post" action="/evergrant/connect/crm">
<input type="hidden" name="csrfmiddlewaretoken" value="{}"><button>Connect the CRM</button></form>"""

evergrant = Evergrant()


def current_user(request: HttpRequest) -> str | None:
    return request.session.get("user")


@csrf_exempt
def log_in(request: HttpRequest) -> HttpResponse:
    request.session["user"] = request.POST["user"]
    return HttpResponse(request.session["user"])


def home(request: HttpRequest) -> HttpResponse:
    if (user := current_user(request)) is None:
        return HttpResponse("log in")
    connected = isinstance(evergrant.lease("crm", user), Lease)
    return HttpResponse("connected" if connected else BUTTON.format(get_token(request)))


urlpatterns = [
    path("", home),
    path("login", log_in),
    path("evergrant/", include(consent_urls(evergrant, subject=current_user, after="/", login="/login"))),
]
app = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
