"""The types of settings: how the text of a variable is read, and what is refused."""

import re
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, TypeAdapter
from pydantic_settings import NoDecode

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
DURATION_FORMS = "use seconds (3600), a number with s, m, h or d (90m, 30d), or ISO 8601 (PT10M, P365D)"
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([smhd]?)")
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_ISO_8601 = TypeAdapter(timedelta)
_DATABASE_SCHEMES = ("sqlite:///", "postgresql://", "postgresql+asyncpg://")
_RIGHT_SCHEMES = {"sqlite": "sqlite:///", "postgres": "postgresql://", "postgresql": "postgresql://"}


def _days(value: Any) -> tuple[int, ...]:
    try:
        days = {int(part) for part in (value.split(",") if isinstance(value, str) else value)}
    except ValueError:
        days = {-1}
    if not days <= set(range(366)):
        raise ValueError("give days from 1 to 365, such as 14,3,1; or 0 for none")
    return tuple(sorted(days - {0}, reverse=True))


def read_duration(value: Any) -> Any:
    """The duration that a text says, in one of `DURATION_FORMS`. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip().lower())
    try:
        if match is not None:
            return timedelta(seconds=float(match[1]) * _UNITS_S[match[2]])
        return _ISO_8601.validate_python(value.strip())
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is no duration; {DURATION_FORMS}") from None


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError(f"must be longer than 0 seconds; {DURATION_FORMS}")
    return value


def split(value: Any) -> Any:
    """The entries of a text that separates them by commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _host_ports(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        host, colon, port = entry.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536) or "/" in host:
            raise ValueError(f"{entry!r} is not host:port; write for example 10.0.0.7:8443")
    return entries


def _networks(entries: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(str(ip_network(entry)) for entry in entries)
    except ValueError as error:
        raise ValueError(f"{error}; write for example 10.0.0.7 or 10.1.0.0/16") from None


def _log_level(value: str) -> str:
    if value.upper() not in _LOG_LEVELS:
        raise ValueError(f"{value!r} is no level; use {', '.join(_LOG_LEVELS)}")
    return value.upper()


def _database_url(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if value and not value.startswith(_DATABASE_SCHEMES):
        right = _RIGHT_SCHEMES.get(scheme.partition("+")[0])
        instead = (
            f"{right} in place of {scheme}://"
            if right
            else "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
        raise ValueError(f"use {instead}")
    if rest.partition("?")[0].count("@") > 1 and scheme != "sqlite":
        raise ValueError(
            "holds two @: write the password's own as %40, or the password into the file of "
            "EVERGRANT_DATABASE_PASSWORD_FILE"
        )
    return value


def _host(value: str) -> str:
    if "/" in value or (value.count(":") == 1 and not value.startswith("[")):
        raise ValueError("must be an address to listen on, such as 127.0.0.1 or 0.0.0.0: no URL and no port")
    return value


def _redis_url(text: str) -> str:
    if text and not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("use redis://HOST:PORT/0, rediss://HOST:PORT/0 or unix://PATH")
    return text


def _temporal_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if value and (not host or not port.isdigit() or "/" in value):
        raise ValueError(f"{value!r} is not host:port; Temporal's frontend listens on 7233 by default")
    return value


CertificateHeader = Literal["rfc9440", "nginx", "envoy"]
CERTIFICATE_HEADER_NAMES: dict[CertificateHeader, str] = {
    "rfc9440": "Client-Cert",
    "nginx": "Ssl-Client-Cert",  # as ingress-nginx names it
    "envoy": "X-Forwarded-Client-Cert",
}
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
Days = Annotated[tuple[int, ...], NoDecode, BeforeValidator(_days)]
Duration = Annotated[timedelta, BeforeValidator(read_duration), AfterValidator(_positive)]
Host = Annotated[str, AfterValidator(_host)]
HostPorts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(_host_ports)]
LogLevel = Annotated[str, AfterValidator(_log_level)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(_networks)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
TemporalAddress = Annotated[str, AfterValidator(_temporal_address)]


def own_public_url(host: str, port: int) -> str:
    """The public URL of an API on this machine. Raises ValueError for one that listens to others too."""
    if not is_loopback(host):
        raise ValueError(
            f"EVERGRANT_PUBLIC_URL: is needed, since EVERGRANT_HOST {host} isn't for this machine alone: the "
            "URL at which browsers reach the API, such as https://evergrant.example.com"
        )
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def check_public_url(text: str) -> None:
    """Require https, or http on a loopback address, and nothing after host and port. Raises ValueError."""
    if text and "://" not in text:
        raise ValueError(f"EVERGRANT_PUBLIC_URL needs its scheme: write https://{text}")
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.path or url.query or url.fragment:
        raise ValueError("EVERGRANT_PUBLIC_URL must be https://host[:port], without a path")
    if url.scheme == "http" and not is_loopback(url.hostname):
        raise ValueError(
            "EVERGRANT_PUBLIC_URL may be http only on a loopback address; "
            f"use https://{url.netloc} and end TLS in front of the API"
        )


def check_web_url(name: str, text: str) -> None:
    """Require an http(s) URL with a host, or nothing. Raises ValueError."""
    url = urlsplit(text)
    if text and (url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment):
        raise ValueError(f"{name} must be http(s)://host[:port], perhaps with a path")


CLIENT_METADATA_PATH = "/oauth/client/{integration}"


def client_metadata_template(text: str, public_url: str) -> str:
    """Where servers read a client's metadata document, with `{integration}`: the text, or our own route.

    Raises ValueError unless it is an https URL with a path: draft-ietf-oauth-client-id-metadata-document,
    section 3.
    """
    derived = public_url + CLIENT_METADATA_PATH
    if text in ("", derived):  # a copy of settings has the route that its original derived
        return derived
    url = urlsplit(text.replace("{integration}", "id"))
    plain = url.scheme == "https" and url.hostname and url.path.strip("/") and text.isprintable()
    if not plain or "{" in url.path or url.query or url.fragment or url.username is not None:
        raise ValueError("EVERGRANT_CLIENT_METADATA_URL must be https://host/path, {integration} in it")
    return text


def is_loopback(host: str) -> bool:
    """True for a host that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def with_password(url: str, file: Path) -> str:
    """The database URL with the password that the file holds. Raises ValueError."""
    try:
        password = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ValueError(f"EVERGRANT_DATABASE_PASSWORD_FILE: {file} can't be read ({reason})") from None
    if not password:
        raise ValueError(f"EVERGRANT_DATABASE_PASSWORD_FILE: {file} is empty; write the password into it")
    scheme, user, rest = _around_password(url)
    if not user:
        raise ValueError("EVERGRANT_DATABASE_URL: names no user for the password; use USER@HOST/DATABASE")
    return f"{scheme}://{user}:{quote(password, safe='')}@{rest}"


def without_password(url: str) -> str:
    """The database URL with its user, and without the user's password."""
    scheme, user, rest = _around_password(url)
    return f"{scheme}://{user}@{rest}" if user else url


def _around_password(url: str) -> tuple[str, str, str]:
    """Scheme, user (empty if the URL names none), and what follows the `@`."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    return scheme, user.partition(":")[0], f"{host}{slash}{path}"
