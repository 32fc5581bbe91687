"""Every setting of the server: flag, then environment (`EVERGRANT_…`), then file, then default.

Secrets are read from files only. The Temporal connection may also come from a profile of
`temporalio.envconfig` (see `temporal_link`).
"""

import os
import re
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from evergrant_server.core.messages.connection import TASK_QUEUE

PREFIX = "EVERGRANT_"
SETTINGS_FILE = "evergrant.env"
_CLIENT_VARIABLES = {"EVERGRANT_URL", "EVERGRANT_API_KEY", "EVERGRANT_API_KEY_FILE"}  # the client's
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class BadSettings(ValueError):
    """A setting that can't be used; the message names it and says what would be right."""


class Settings(BaseSettings):
    """What an operator may set. Durations are seconds (or ISO 8601)."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=SETTINGS_FILE,
        env_file_encoding="utf-8",
        extra="ignore",
    )

    data_dir: Path = Field(
        default=Path(".evergrant"),
        description="Where a worker keeps its journal, and `dev` everything it has: on a local disk that "
        "outlives the process, another one on each host.",
    )
    database_url: str = Field(
        default="", repr=False, description="SQLAlchemy URL of the store; empty: SQLite in the data folder."
    )
    database_password_file: Path | None = Field(
        default=None, description="A file with the database's password, which then isn't in the URL."
    )
    key_file: Path | None = Field(
        default=None, description="The key ring; empty: keys.json in the data folder."
    )
    host: str = Field(default="127.0.0.1", description="The address the API listens on.")
    port: int = Field(default=8480, ge=1, le=65535, description="The port the API listens on.")
    public_url: str = Field(
        default="", description="How browsers and providers reach the API; empty: http://host:port."
    )
    api_workers: int = Field(default=1, ge=1, le=64, description="API worker processes.")
    temporal_address: str = Field(
        default="", description="host:port of Temporal's frontend; empty: envconfig."
    )
    temporal_namespace: str = Field(default="default", description="The Temporal namespace.")
    temporal_task_queue: str = Field(
        default=TASK_QUEUE,
        description="The task queue of workflows and activities; the same for API and workers.",
    )
    temporal_profile: str | None = Field(default=None, description="A profile of Temporal's envconfig file.")
    temporal_port: int = Field(
        default=8482, ge=1, le=65535, description="`dev` only: port of the Temporal server it starts."
    )
    temporal_ui_port: int = Field(
        default=8481, ge=1, le=65535, description="`dev` only: port of the Temporal UI."
    )
    history_retention: timedelta = Field(
        default=timedelta(days=365),
        description="How long Temporal keeps closed runs; set by `dev` and `db upgrade`.",
    )
    tenant: str = Field(
        default="default", description="The tenant that `keys bootstrap` and `audit verify` work for."
    )
    consent_ttl: timedelta = Field(
        default=timedelta(hours=1), description="How long a connect link can be used."
    )
    lease_wait: timedelta = Field(
        default=timedelta(seconds=10),
        description="How long a lease waits for a refresh before it answers 503.",
    )
    relay_interval: timedelta = Field(
        default=timedelta(seconds=1), description="How often the outbox is looked at when nobody nudges it."
    )
    reconcile_interval: timedelta = Field(
        default=timedelta(minutes=5),
        description="How often live connections without a workflow are looked for, "
        "and how long one is without at the most.",
    )
    metadata_interval: timedelta = Field(
        default=timedelta(hours=1),
        description="How often discovered metadata is looked for that is over a day old; 20 issuers a time.",
    )
    introspection_interval: timedelta = Field(
        default=timedelta(hours=12),
        description="How often a provider that offers it is asked whether a grant still lives.",
    )
    expiry_announce_days: Annotated[tuple[int, ...], NoDecode] = Field(
        default=(14, 3, 1),
        description="Days before a grant ends for good on which that is announced, for grants that come "
        "from then on, and for runs that begin again. Comma-separated; 0 announces nothing.",
    )
    webhook_retention: timedelta = Field(
        default=timedelta(days=30),
        description="How long the log of deliveries to webhooks, and with it what can be replayed, is kept.",
    )
    webhook_give_up_after: timedelta = Field(
        default=timedelta(days=5),
        description="How long a webhook's endpoint may fail before the webhook is disabled.",
    )
    webhook_secret_overlap: timedelta = Field(
        default=timedelta(days=1),
        description="How long a rotated signing secret of a webhook still signs beside the new one.",
    )
    circuit_threshold: int = Field(
        default=5,
        ge=0,
        description="Failures in a row, over all connections of an integration, after which a worker sends "
        "its provider one probe at a time (or after a 429 to each of three connections); 0: never, "
        "and its retries are not rationed either.",
    )
    circuit_longest_gap: timedelta = Field(
        default=timedelta(minutes=10),
        description="The longest time between two probes, unless a 429 says longer (an hour at most).",
    )
    egress_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="host:port pairs that may be private or plain http. A door: for tests and inner servers.",
    )
    allow_tokens_in_browser: bool = Field(
        default=False,
        description="Allows the flow `implicit`, where the access token itself passes through the subject's "
        "browser (RFC 9700 section 2.1.2 advises against it).",
    )
    four_eyes: bool = Field(
        default=False,
        description="Whoever proposed a provider's definition can't approve it: another app must.",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="`text` for people, `json` for one JSON object a line."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Where a worker serves `/metrics`, Temporal's own included; empty: nowhere.",
    )
    metrics_host: str = Field(default="127.0.0.1", description="The address it serves them on.")

    @field_validator("expiry_announce_days", mode="before")
    @classmethod
    def _days(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        days = {int(part) for part in parts}
        if not days <= set(range(366)):
            raise ValueError("give days from 1 to 365, or 0 for none")
        return tuple(sorted(days - {0}, reverse=True))

    @field_validator("egress_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("egress_allow")
    @classmethod
    def _host_and_port(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            host, colon, port = entry.rpartition(":")
            if not (host and colon and port.isdigit() and 0 < int(port) < 65536) or "/" in host:
                raise ValueError(f"{entry!r} is not host:port; write for example 10.0.0.7:8443")
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.upper() not in _LOG_LEVELS:
            raise ValueError(f"{value!r} is no level; use {', '.join(_LOG_LEVELS)}")
        return value.upper()

    @field_validator("database_url")
    @classmethod
    def _async_driver(cls, value: str) -> str:
        if value and not value.startswith(("sqlite+aiosqlite:///", "postgresql+asyncpg://")):
            raise ValueError("use sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/DATABASE")
        return value

    @field_validator("temporal_address")
    @classmethod
    def _frontend(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and (not host or not port.isdigit() or "/" in value):
            raise ValueError(f"{value!r} is not host:port; Temporal's frontend listens on 7233 by default")
        return value

    @field_validator(
        "history_retention",
        "consent_ttl",
        "lease_wait",
        "relay_interval",
        "reconcile_interval",
        "metadata_interval",
        "introspection_interval",
        "webhook_retention",
        "webhook_give_up_after",
        "webhook_secret_overlap",
        "circuit_longest_gap",
    )
    @classmethod
    def _positive(cls, value: timedelta) -> timedelta:
        if value <= timedelta(0):
            raise ValueError("must be more than 0 seconds")
        return value

    @model_validator(mode="after")
    def _derive(self) -> "Settings":
        self.data_dir = self.data_dir.expanduser().absolute()
        if not self.database_url:
            self.database_url = f"sqlite+aiosqlite:///{self.data_dir / 'evergrant.db'}"
        elif self.database_password_file is not None:
            self.database_url = _with_password(self.database_url, self.database_password_file)
        if self.key_file is None:
            self.key_file = self.data_dir / "keys.json"
        if not self.public_url:
            self.public_url = f"http://{self.host}:{self.port}"
        self.public_url = self.public_url.rstrip("/")
        self._check_public_url()
        return self

    def _check_public_url(self) -> None:
        url = urlsplit(self.public_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.path or url.query or url.fragment:
            raise ValueError("EVERGRANT_PUBLIC_URL must be https://host[:port], without a path")
        if url.scheme == "http" and not _is_loopback(url.hostname):
            raise ValueError(
                "EVERGRANT_PUBLIC_URL may be http only on a loopback address; "
                f"use https://{url.netloc} and end TLS in front of the API"
            )

    @property
    def key_path(self) -> Path:
        """The key file's path (never None after validation)."""
        assert self.key_file is not None
        return self.key_file

    @property
    def uses_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _with_password(url: str, file: Path) -> str:
    """The URL with the password that the file holds."""
    try:
        password = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ValueError(f"EVERGRANT_DATABASE_PASSWORD_FILE: {file} can't be read ({reason})") from None
    if not password:
        raise ValueError(f"EVERGRANT_DATABASE_PASSWORD_FILE: {file} is empty; write the password into it")
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if not at:
        raise ValueError("EVERGRANT_DATABASE_URL: names no user for the password; use USER@HOST/DATABASE")
    return f"{scheme}://{user.partition(':')[0]}:{quote(password, safe='')}@{host}{slash}{path}"


def load_settings(**flags: Any) -> Settings:
    """Read the settings; `flags` win, None flags count as not given.

    Raises BadSettings with one line per setting that is wrong.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    lines = _misspelled_settings()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            said = problem["msg"].removeprefix("Value error, ")
            if problem["type"].startswith("time_delta"):
                said = "use seconds, or an ISO 8601 duration such as PT10M or P365D"
            name = ".".join(str(part) for part in problem["loc"])
            lines.append(f"{PREFIX}{name.upper()}: {said}" if name else said)
        raise BadSettings("\n  ".join(lines)) from None
    if lines:
        raise BadSettings("\n  ".join(lines))
    return settings


def _misspelled_settings() -> list[str]:
    """Names that are almost a setting: they would be ignored, and the default used instead."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    names = {name.upper() for name in os.environ}
    try:
        text = Path(SETTINGS_FILE).read_text(encoding="utf-8")
        names |= {it.upper() for it in re.findall(r"^\s*(?:export\s+)?(\w+)\s*=", text, re.MULTILINE)}
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        return [f"{Path(SETTINGS_FILE).absolute()}: can't be read ({reason}); correct or remove it"]
    unknown = sorted(it for it in names if it.startswith(PREFIX) and it not in known | _CLIENT_VARIABLES)
    meant = [(name, get_close_matches(name, known, n=1, cutoff=0.85)) for name in unknown]
    return [f"{name}: there is no such setting; did you mean {near[0]}?" for name, near in meant if near]
