"""Django's settings for the project, from the command line's options."""

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from django.conf import settings

from examples.authorization_server.options import Options

HOST = "127.0.0.1"
SCOPES = {"read": "Read your account's name", "write": "Change your account"}
_HERE = Path(__file__).parent
_PACKAGE = __package__
_APPS = ("django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "oauth2_provider")


@dataclass(frozen=True)
class Credentials:
    """Random secrets of a data folder, kept in a file of mode 0600."""

    user: str
    password: str
    control_key: str  # for the `/_demo/` routes
    django_secret: str

    @classmethod
    def of(cls, folder: Path, user: str) -> "Credentials":
        path = folder / "credentials.json"
        if path.exists():
            return cls(**json.loads(path.read_text()))
        made = cls(user, secrets.token_urlsafe(18), secrets.token_urlsafe(32), secrets.token_urlsafe(50))
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(made), file)
        return made


def configure(options: Options, issuer: str, credentials: Credentials) -> None:
    """Set Django up. Must run before anything imports a model."""
    settings.configure(
        SECRET_KEY=credentials.django_secret,
        CONTROL_KEY=credentials.control_key,
        ALLOWED_HOSTS=[HOST],
        ROOT_URLCONF=f"{_PACKAGE}.urls",
        INSTALLED_APPS=list(_APPS),
        # tables are made from the models: by the migrations' history it takes a second more
        MIGRATION_MODULES=dict.fromkeys(name.rpartition(".")[2] for name in _APPS),
        MIDDLEWARE=[
            f"{_PACKAGE}.observing.ObserveTokenEndpoint",
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "DIRS": [_HERE / "templates"],
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
            }
        ],
        DATABASES={"default": _database(options)},
        PASSWORD_HASHERS=[f"{_PACKAGE}.hashing.QuickHasher"],
        LOGIN_URL="login",
        STATIC_URL="/static/",
        # Browsers don't keep cookies of different ports apart, and everything here is on one host.
        SESSION_COOKIE_NAME="authorization_server_session",
        CSRF_COOKIE_NAME="authorization_server_csrf",
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        LOGGING=_LOGGING,
        OAUTH2_PROVIDER=_oauth(options, issuer),
    )


def _database(options: Options) -> dict[str, object]:
    if options.postgres is not None:  # needs psycopg, which the tests bring
        host, _, name = options.postgres.rpartition("/")
        return {"ENGINE": "django.db.backends.postgresql", "HOST": host, "NAME": name, "USER": "postgres"}
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": options.data / "authorization_server.db",
        "OPTIONS": {
            "timeout": 20,
            # A transaction that reads before it writes would otherwise fail at once with
            # "database is locked" when another one wrote in between.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }


def _oauth(options: Options, issuer: str) -> dict[str, object]:
    return {
        "OIDC_ISS_ENDPOINT": issuer,  # the issuer of the RFC 8414 document and of `iss` too
        "SCOPES": {**SCOPES, "introspection": "Introspect tokens"},
        "DEFAULT_SCOPES": ["read"],
        "PKCE_REQUIRED": True,
        "OAUTH_DEVICE_VERIFICATION_URI": f"{issuer}/device/",
        "DEVICE_FLOW_INTERVAL": options.device_interval,
        "ACCESS_TOKEN_EXPIRE_SECONDS": options.access_token_seconds,
        "ROTATE_REFRESH_TOKEN": options.rotate,
        "REFRESH_TOKEN_REUSE_PROTECTION": options.reuse_protection,
        "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": options.grace,
        "OAUTH2_GRANT_TYPES_SUPPORTED": ["authorization_code", "refresh_token"],
        "OAUTH2_RESPONSE_TYPES_SUPPORTED": ["code", *(["token"] if options.implicit else [])],
        "DCR_ENABLED": options.registration,  # RFC 7591
        "DCR_REGISTRATION_PERMISSION_CLASSES": ("oauth2_provider.dcr.AllowAllDCRPermission",),
        "COMPLIANT_BCP_RFC9700_IMPLICIT_GRANT": not options.implicit,
        "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": True,
        "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
        "COMPLIANT_BCP_RFC9700_ACCESS_TOKEN_TRANSPORT": True,
        "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,  # RFC 9207
    }


_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        # Expected 400 and 401 answers are not errors; access lines would quote query strings.
        "django.request": {"level": "ERROR"},
        "django.server": {"level": "CRITICAL", "handlers": [], "propagate": True},
        "oauth2_provider": {"level": "ERROR"},
    },
}
