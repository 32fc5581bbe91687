"""Every setting of the server: a flag wins over the environment (`EVERGRANT_…`), a file, and the default.

Secrets are read from files only. The Temporal connection may also come from a profile of
`temporalio.envconfig` (see `temporal_link`).
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from evergrant_server.core.messages.names import TASK_QUEUE
from evergrant_server.core.model import CheckedModel
from evergrant_server.settings.audit import AuditSettings
from evergrant_server.settings.audit_streams import AuditStreamSettings
from evergrant_server.settings.detection import DetectionSettings
from evergrant_server.settings.endings import EndingSettings
from evergrant_server.settings.errors import (
    PREFIX,
    SETTINGS_FILE,
    BadSettings,
    errors_in_words,
    suspicious_variables,
)
from evergrant_server.settings.gateway import GatewaySettings, OAuthSettings
from evergrant_server.settings.recovery import BackupSettings, RegionSettings
from evergrant_server.settings.types import (
    CertificateHeader,
    DatabaseUrl,
    Days,
    Duration,
    Host,
    HostPorts,
    LogLevel,
    Networks,
    RedisUrl,
    TemporalAddress,
    check_public_url,
    check_web_url,
    client_metadata_template,
    own_public_url,
    with_password,
)


class MtlsSettings(CheckedModel):
    """What `serve --mtls` listens on. The listener at host and port never reads a certificate."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    mtls_url: str = ""
    """The https URL at which a proxy asks apps for their certificates; empty: none does. The authorization
    server's metadata names it (RFC 8705 section 5)."""
    mtls_header: CertificateHeader | None = None
    """How that proxy hands a certificate on: `rfc9440` (`Client-Cert`: HAProxy and others), `nginx`
    (`Ssl-Client-Cert` with `$ssl_client_escaped_cert`) or `envoy` (`X-Forwarded-Client-Cert` with `Cert`). It
    needs a hop that only the proxy reaches: a socket, or a port with `mtls_proxy_ca`."""
    mtls_socket: Path | None = None
    """The unix socket on which `serve --mtls` listens. Its user and group alone can open it (mode 0660), and
    may be any app: the proxy must be the group's only other member."""
    mtls_host: str = "127.0.0.1"
    """The address on which `serve --mtls` listens with TLS."""
    mtls_port: int | None = Field(default=None, ge=1, le=65535)
    """The port on which `serve --mtls` listens with TLS 1.3, in place of a socket."""
    mtls_certificate: Path | None = None
    """The certificate of `mtls_port`, PEM."""
    mtls_key: Path | None = None
    """The private key of `mtls_certificate`, PEM (PKCS #8)."""
    mtls_proxy_ca: Path | None = None
    """A private authority, PEM. Each certificate that it issues may say that it is any app: the proxy's
    must be the only one."""

    @model_validator(mode="after")
    def _require_trusted_hop(self) -> "MtlsSettings":
        over_tls = (self.mtls_certificate, self.mtls_key, self.mtls_proxy_ca)
        if self.mtls_socket is not None and self.mtls_port is not None:
            raise ValueError("EVERGRANT_MTLS_SOCKET and EVERGRANT_MTLS_PORT: give one of them")
        if self.mtls_port is None and any(over_tls):
            raise ValueError("EVERGRANT_MTLS_CERTIFICATE, _KEY and _PROXY_CA belong to EVERGRANT_MTLS_PORT")
        if self.mtls_port is not None and not all(over_tls):
            raise ValueError(
                "EVERGRANT_MTLS_PORT: any client could send a certificate's header there; it needs "
                "EVERGRANT_MTLS_CERTIFICATE, EVERGRANT_MTLS_KEY and EVERGRANT_MTLS_PROXY_CA"
            )
        if self.mtls_header is not None and not self.has_trusted_hop:
            raise ValueError(
                "EVERGRANT_MTLS_HEADER: any client could send that header; it needs a hop that only the "
                "proxy reaches: EVERGRANT_MTLS_SOCKET, or EVERGRANT_MTLS_PORT with EVERGRANT_MTLS_PROXY_CA"
            )
        if self.has_trusted_hop and self.mtls_header is None:
            raise ValueError("EVERGRANT_MTLS_HEADER: name the format of the proxy: rfc9440, nginx or envoy")
        self.mtls_url = self.mtls_url.rstrip("/")
        url = urlsplit(self.mtls_url)
        if self.mtls_url and (url.scheme != "https" or not url.hostname or url.path or url.query):
            raise ValueError("EVERGRANT_MTLS_URL must be https://host[:port], without a path")
        return self

    @property
    def has_trusted_hop(self) -> bool:
        return self.mtls_socket is not None or self.mtls_port is not None


class Settings(
    MtlsSettings,
    GatewaySettings,
    OAuthSettings,
    RegionSettings,
    AuditSettings,
    AuditStreamSettings,
    DetectionSettings,
    EndingSettings,
    BackupSettings,
    BaseSettings,
):
    """What an operator may set. Durations are read by `read_duration`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=SETTINGS_FILE,
        env_file_encoding="utf-8-sig",
        extra="ignore",
        use_attribute_docstrings=True,  # they are the descriptions of docs/reference/settings.md
    )

    data_dir: Path = Path(".evergrant")
    """The folder of a worker's journal, and of all data of `dev`. It must be on a local disk that outlives
    the process; each host needs its own."""
    database_url: DatabaseUrl = Field(default="", repr=False)
    """SQLAlchemy URL of the store; empty: SQLite in the data folder. Of a PostgreSQL with standbys it names
    every server: `postgresql://USER@/DATABASE?host=db-a:5432&host=db-b:5432`."""
    database_password_file: Path | None = None
    """A file that holds the database's password, to keep it out of the URL and of every environment. Each
    process reads it."""
    key_file: Path | None = None
    """The key ring; empty: keys.json in the data folder."""
    key_service: str = "file"
    """What wraps the root keys: `file`, the key file, or the URL of a key service, `{purpose}` in the key's
    name: `aws-kms:alias/evergrant-{purpose}`, `vault:https://vault.example:8200/transit/evergrant-{purpose}`,
    `pkcs11:…`, `gcp-kms:…`, `azure:…`. Its credentials are found as its vendor's own library finds them."""
    key_service_before: str = ""
    """The key service, or `file`, that wrapped the root keys before: what it has wrapped opens, and it wraps
    nothing more. `keys rotate all` moves to EVERGRANT_KEY_SERVICE; then it isn't needed any more."""
    key_hold: Duration = timedelta(minutes=5)
    """How long a process goes on with its root keys after its key service last answered. Then it answers 503
    until the service is there. A service that refuses a key ends it at once."""
    host: Host = "127.0.0.1"
    """The address the API listens on."""
    port: int = Field(default=8480, ge=1, le=65535)
    """The port the API listens on."""
    public_url: str = ""
    """The URL at which browsers and providers reach the API; empty: http://host:port."""
    client_metadata_url: str = ""
    """The https URL at which authorization servers read the metadata document of a client that registers
    itself so, `{integration}` in it for the integration's id; empty: `/oauth/client/{integration}` of the
    public URL. Host the document there if they can't reach the API."""
    trusted_proxies: Networks = ()
    """Networks of the proxies in front of the API, and of no other host: the caller's address is the last one
    of `X-Forwarded-For` that isn't a proxy's. It counts for permits with `sources` and for
    guesses. Comma-separated."""
    api_workers: int = Field(default=1, ge=1, le=64)
    """API worker processes."""
    temporal_address: TemporalAddress = ""
    """host:port of Temporal's frontend; empty: envconfig."""
    temporal_namespace: str = "default"
    """The Temporal namespace."""
    temporal_task_queue: str = TASK_QUEUE
    """The task queue of workflows and activities; the same for API and workers."""
    temporal_profile: str | None = None
    """A profile of Temporal's envconfig file."""
    temporal_port: int = Field(default=8482, ge=1, le=65535)
    """`dev` only: port of the Temporal server it starts."""
    temporal_ui_port: int = Field(default=8481, ge=1, le=65535)
    """`dev` only: port of the Temporal UI."""
    temporal_ui_url: str = ""
    """The URL at which an operator's browser reaches the Temporal UI: the console links a connection's
    workflow there. Empty: no link; `dev` sets its own."""
    seal_histories: bool = True
    """Whether what the workflows of connections write into Temporal is sealed, by a key of each connection.
    Off: it is plain from then on, and what was sealed stays readable."""
    temporal_codec: str = ""
    """A codec of your own, `module:attribute` (a `temporalio.converter.PayloadCodec`, or its class): every
    payload passes it, those of pipelines too, before it is sealed."""
    history_retention: Duration = timedelta(days=365)
    """How long Temporal keeps closed runs; set by `dev` and `db upgrade`."""
    tenant: str = "default"
    """The tenant of `keys bootstrap` and `audit verify`."""
    consent_ttl: Duration = timedelta(hours=1)
    """How long a connect link can be used."""
    api_key_lifetime: Duration = timedelta(days=90)
    """How long a new API key is accepted, unless its request names another lifetime."""
    lease_limit_per_app: int = Field(default=0, ge=0)
    """Leases of one app in a minute; 0: no limit. An app's own `lease_limit` replaces it. Each API process of
    a host enforces its part: the number divided by EVERGRANT_API_WORKERS."""
    lease_limit_per_tenant: int = Field(default=0, ge=0)
    """The same for all apps of a tenant together."""
    lease_limit_per_integration: int = Field(default=0, ge=0)
    """The same for all leases of an integration's connections."""
    open_leases_per_app: int = Field(default=512, ge=1)
    """Lease requests that one app may have open at once in one API process; more are answered with 429."""
    request_limit_per_app: int = Field(default=0, ge=0)
    """Requests of one app in a minute that are no leases; 0: no limit. Divided as the limits of leases are,
    unless EVERGRANT_REDIS_URL is set."""
    token_limit_per_app: int = Field(default=120, ge=0)
    """Access tokens that `POST /oauth/token` issues to one app in a minute; 0: no limit. Divided likewise."""
    guess_limit_per_address: int = Field(default=60, ge=0)
    """Requests of one client address in a minute that may be refused on connect pages, at callbacks and at
    `POST /oauth/token` before it has to wait; 0: no limit. Divided likewise. Behind a proxy set
    EVERGRANT_TRUSTED_PROXIES: what comes straight from a private network isn't limited."""
    redis_url: RedisUrl = Field(default="", repr=False)
    """redis://, rediss:// or unix:// URL of a Redis in which all API processes count together what isn't a
    lease; empty: each counts for itself, as it does while Redis is away."""
    redis_password_file: Path | None = None
    """A file that holds the password of Redis, to keep it out of the URL."""
    lease_wait: Duration = timedelta(seconds=10)
    """How long a lease request waits for a refresh before the API answers 503."""
    cached_workflows: int = Field(default=1000, ge=2)
    """Running workflows that a worker keeps in memory; the others are replayed from their history when
    something happens to them. About 0.15 MiB each."""
    relay_interval: Duration = timedelta(seconds=1)
    """How often the relay reads the outbox when no process has announced a message."""
    reconcile_interval: Duration = timedelta(minutes=5)
    """How often reconcile looks for live connections without a workflow; a connection is without one for at
    most this long. What two counts don't show is noticed within 288 times as long."""
    metadata_interval: Duration = timedelta(hours=1)
    """How often metadata that is over a day old is read again; 20 issuers in a pass."""
    introspection_interval: Duration = timedelta(hours=12)
    """How often each grant is introspected (RFC 7662) at a provider that offers it."""
    expiry_announce_days: Days = (14, 3, 1)
    """Days before a grant ends for good on which the event `connection.expiring` is sent. A change counts for
    new grants and for restarted workflows. Comma-separated; 0 sends none."""
    attempt_retention: Duration = timedelta(days=90)
    """How long attempts are kept once nothing reads them: longer than a worker's host may be away, whose
    journal may still have their replies. A legal hold keeps them, as all that follows."""
    consent_retention: Duration = timedelta(days=365)
    """How long consents are kept after their end; the first and the newest one of a live connection stay."""
    exported_history_retention: Duration = timedelta(days=1095)
    """How long the store keeps exported histories of connections' workflows."""
    outbox_retention: Duration = timedelta(days=7)
    """How long delivered messages to Temporal are kept."""
    idempotency_retention: Duration = timedelta(days=1)
    """How long a response is kept for its `Idempotency-Key`."""
    audit_retention: Duration = timedelta(days=3650)
    """How long audit records say what happened. Their hashes stay: `audit verify` still proves each."""
    webhook_retention: Duration = timedelta(days=30)
    """How long deliveries to webhooks are kept, and can be replayed."""
    webhook_give_up_after: Duration = timedelta(days=5)
    """How long a webhook's endpoint may fail before the webhook is disabled."""
    webhook_secret_overlap: Duration = timedelta(days=1)
    """How long a rotated signing secret of a webhook still signs beside the new one."""
    circuit_threshold: int = Field(default=5, ge=0)
    """Consecutive failures over all connections of an integration after which a worker opens its circuit and
    sends one probe at a time (a 429 to each of three connections opens it too). 0 switches circuits and
    retry budgets off."""
    circuit_longest_gap: Duration = timedelta(minutes=10)
    """The longest time between two probes of an open circuit; a 429 may extend it to an hour."""
    control_requests: bool = True
    """A refusal that doesn't say whose turn it is may be compared with the answer to one refresh token that
    can't exist, while other connections are refreshed: once a day for an integration at most."""
    egress_allow: HostPorts = ()
    """host:port pairs that may be private or plain http. This opens the egress guard: use it for tests and
    internal servers only."""
    trusted_ca_file: Path | None = None
    """Certificates of private authorities, PEM, that workers and gateways trust beside this machine's: for
    providers, webhooks, streams of the audit log, and providers' APIs."""
    start_command: str = ""
    """The command by which this installation is started, where a repair is to start it anew with another
    setting; `dev` sets its own."""
    allow_tokens_in_browser: bool = False
    """Allows the flow `implicit`: the access token passes the subject's browser (against RFC 9700, 2.1.2)."""
    allow_unbound_consent: bool = False
    """Allows the binding `none`: any person who opens a connect link connects their own account. `dev` on a
    loopback address sets it."""
    four_eyes: bool = False
    """Another app or person with `admin` must approve dangerous commands: keys, credentials, weighty permits,
    exports, what says where people log in and where secrets are sent. There must be two such admins."""
    key_rotation: Duration | None = None
    """How old a tenant's own keys may become before a worker rotates them, such as 90d; empty: they are
    rotated by command alone, as keys of connections are."""
    self_permits: bool = False
    """An app with the action `admin` may give itself `token`, `proxy` and `export`. Without this another app
    with `admin` must."""
    log_level: LogLevel = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    log_format: Literal["text", "json"] = "text"
    """`text` for reading, `json` for one JSON object per line."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """The port on which a worker serves `/metrics`, Temporal's own included, `/livez`, and `/readyz` (200
    while it works); empty: none."""
    metrics_host: str = "127.0.0.1"
    """The address on which a worker serves them."""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Empty stands for a default that is nothing or a path: an empty path would be this folder."""
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {
            name: value
            for name, value in values.items()
            if value != "" or not isinstance(defaults.get(name, ""), Path | None)
        }

    @model_validator(mode="after")
    def _derive(self) -> "Settings":
        self.data_dir = self.data_dir.expanduser().absolute()
        if not self.database_url:
            self.database_url = f"sqlite:///{self.data_dir / 'evergrant.db'}"
        elif self.database_password_file is not None:
            self.database_url = with_password(self.database_url, self.database_password_file)
        if self.region and self.uses_sqlite:
            raise ValueError("EVERGRANT_REGION: needs PostgreSQL; SQLite is on one host, without a standby")
        if self.key_file is None:
            self.key_file = self.data_dir / "keys.json"
        if not self.public_url:
            self.public_url = own_public_url(self.host, self.port)
        gateway = self.gateway_public_url or f"http://{self.gateway_host}:{self.gateway_port}"
        self.gateway_public_url = gateway.rstrip("/")
        self.public_url = self.public_url.rstrip("/")
        check_public_url(self.public_url)
        self.client_metadata_url = client_metadata_template(self.client_metadata_url, self.public_url)
        check_web_url("EVERGRANT_TEMPORAL_UI_URL", self.temporal_ui_url)
        return self

    @property
    def key_path(self) -> Path:
        """The key file's path; never None after validation."""
        assert self.key_file is not None
        return self.key_file

    @property
    def key_service_urls(self) -> tuple[str, ...]:
        """The key services that open what they have wrapped. The first wraps."""
        return tuple(url for url in (self.key_service, self.key_service_before) if url)

    @property
    def uses_key_file(self) -> bool:
        return "file" in self.key_service_urls

    @property
    def uses_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")


def load_settings(**flags: Any) -> Settings:
    """Read the settings. Flags win; a flag that is None counts as not given.

    Raises BadSettings with one line per invalid setting.
    """
    overrides = {name: value for name, value in flags.items() if value is not None}
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    if lines := suspicious_variables(known):
        raise BadSettings("\n  ".join(lines))
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise BadSettings("\n  ".join(errors_in_words(error))) from None
