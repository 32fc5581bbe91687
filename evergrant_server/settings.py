"""Every setting of the server: flag, then environment (`EVERGRANT_…`), then file, then default.

Secrets are read from files only. The Temporal connection may also come from a profile of
`temporalio.envconfig` (see `temporal_link`).
"""

from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from evergrant_server.core.messages import TASK_QUEUE


class BadSettings(ValueError):
    """A setting that can't be used; the message names it and says what would be right."""


class Settings(BaseSettings):
    """What an operator may set. Durations are seconds (or ISO 8601)."""

    model_config = SettingsConfigDict(
        env_prefix="EVERGRANT_",
        env_file="evergrant.env",
        env_file_encoding="utf-8",
        extra="ignore",
    )

    data_dir: Path = Field(
        default=Path(".evergrant"), description="Where the embedded parts keep their files."
    )
    database_url: str = Field(
        default="", description="SQLAlchemy URL of the store; empty: SQLite in the data folder."
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
    tenant: str = Field(default="default", description="The tenant that `keys bootstrap` works for.")
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
    egress_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="host:port pairs that may be private or plain http. A door: for tests and inner servers.",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")

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
            if not (host and colon and port.isdigit()):
                raise ValueError(f"{entry!r} is not host:port")
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("use DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @field_validator("database_url")
    @classmethod
    def _async_driver(cls, value: str) -> str:
        if value and not value.startswith(("sqlite+aiosqlite:///", "postgresql+asyncpg://")):
            raise ValueError("use sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/DATABASE")
        return value

    @model_validator(mode="after")
    def _derive(self) -> "Settings":
        self.data_dir = self.data_dir.expanduser().absolute()
        if not self.database_url:
            self.database_url = f"sqlite+aiosqlite:///{self.data_dir / 'evergrant.db'}"
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
            raise ValueError("public_url must be https://host[:port], without a path")
        if url.scheme == "http" and not _is_loopback(url.hostname):
            raise ValueError("public_url may be http only on a loopback address; use https")

    @property
    def keys(self) -> Path:
        """The key file's path (never None after validation)."""
        assert self.key_file is not None
        return self.key_file

    @property
    def sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(**flags: Any) -> Settings:
    """Read the settings; `flags` win, None flags count as not given.

    Raises BadSettings with one line per setting that is wrong.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False):
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            lines.append(f"EVERGRANT_{name.upper()}: {problem['msg'].removeprefix('Value error, ')}")
        raise BadSettings("\n".join(lines)) from None
