"""`EVERGRANT_…=… SESSION_SECRET=… python -m examples.web.django_app runserver`: a project in one file."""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt
from evergrant import Evergrant, Lease
from evergrant.web import Offer
from evergrant.web.django import consent_urls

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


offers = [Offer("crm", "The CRM", several=True)]
consents = consent_urls(evergrant, subject=current_user, after="/", login="/login", offers=offers)
urlpatterns = [path("", home), path("login", log_in), path("evergrant/", include(consents))]
app = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
