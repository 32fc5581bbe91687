"""django-oidc-provider with one client and one user, on a free port, for end-to-end tests.

Its issuer has a path, it has OpenID Connect's metadata alone, sends `bearer` and no scopes, and revokes
nothing. Run as a program of its own by `tests.fakes.providers.issuers`, which says what `POST /_test` does.
"""

import json
from io import StringIO
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

CLIENT, SECRET, USER, PASSWORD = "evergrant", "a-client-secret", "sam", "a-password"
_LOGIN = '<form method="post">{% csrf_token %}{{ form }}<button type="submit">Log in</button></form>'
_LOADERS = [
    ("django.template.loaders.locmem.Loader", {"registration/login.html": _LOGIN}),
    "django.template.loaders.app_directories.Loader",
]


urlpatterns: list[Any] = []  # of Django's, filled once its models are ready


def configure() -> None:
    """The database is in memory: the server has one thread."""
    settings.configure(
        SECRET_KEY="only-for-tests" * 4,
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=__name__,
        LOGIN_URL="/login/",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # the default costs half a second
        USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oidc_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": _LOADERS,
                    "context_processors": ["django.template.context_processors.request"],
                },
            }
        ],
    )
    django.setup()


def fill() -> None:
    """The tables, the key, the user and the client."""
    from django.contrib.auth.models import User
    from oidc_provider.models import Client, ResponseType

    call_command("migrate", verbosity=0)
    call_command("creatersakey", verbosity=0, stdout=StringIO())
    User.objects.create_user(USER, password=PASSWORD)
    client = Client.objects.create(
        client_id=CLIENT, client_secret=SECRET, jwt_alg="RS256", _scope="openid email", reuse_consent=False
    )
    client.response_types.add(ResponseType.objects.get(value="code"))


@csrf_exempt
def control(request: HttpRequest) -> JsonResponse:
    from django.contrib.auth.models import User
    from oidc_provider.models import Client, Token

    asked = json.loads(request.body)
    if "add_user" in asked:
        User.objects.create_user(asked["add_user"], password=PASSWORD)
    if "disable" in asked:
        User.objects.filter(username=asked["disable"]).update(is_active=False)
    if "end_grants_of" in asked:
        Token.objects.filter(user__username=asked["end_grants_of"]).delete()
    if "redirect_uri" in asked:
        Client.objects.update(_redirect_uris=asked["redirect_uri"])
    if "secret_works" in asked:
        Client.objects.update(client_secret=SECRET if asked["secret_works"] else "another")
    if asked.get("end_grants"):
        Token.objects.all().delete()
    return JsonResponse({"live": Token.objects.count(), "client_id": CLIENT, "client_secret": SECRET})


class Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    configure()
    from django.contrib.auth.views import LoginView

    urlpatterns.append(path("openid/", include("oidc_provider.urls", namespace="oidc_provider")))
    urlpatterns.append(path("login/", LoginView.as_view()))
    urlpatterns.append(path("_test", control))
    fill()
    server = make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Silent)
    base = f"http://127.0.0.1:{server.server_port}"
    print(json.dumps({"issuer": f"{base}/openid", "control": f"{base}/_test"}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
