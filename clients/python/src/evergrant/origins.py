"""Where the API key and tokens may be sent: Evergrant's address and key, and the origins (RFC 6454 section 4)
of a token's API.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import httpx2

from evergrant.errors import BadRequest
from evergrant.identity import Certificate, Identity, PrivateKey, WorkloadToken

Origin = tuple[str, str, int]
_URL = "Set EVERGRANT_URL to a whole URL, such as http://127.0.0.1:8480 or https://evergrant.example.com."
_NO_URL = "Set EVERGRANT_URL; beside make dev it is http://127.0.0.1:8480."
_PROOFS = ("EVERGRANT_PRIVATE_KEY_FILE", "EVERGRANT_CERTIFICATE_FILE", "EVERGRANT_WORKLOAD_TOKEN_FILE")
_PORTS = {"http": 80, "https": 443}


def origin_of(url: httpx2.URL) -> Origin:
    """Scheme, host and port; the scheme's default port where the URL names none."""
    return (url.scheme, url.host, url.port or _PORTS.get(url.scheme, 0))


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_origins(origins: str | Iterable[str]) -> frozenset[Origin]:
    """Where a token may be sent.

    Raises BadRequest for an empty list, a URL that is no origin, and plain http to another machine.
    """
    listed = (origins,) if isinstance(origins, str) else tuple(origins)
    if not listed:
        raise BadRequest("no origin is allowed", code="origin_invalid", repair="Name the API's origin.")
    return frozenset(_checked(origin) for origin in listed)


def _checked(origin: str) -> Origin:
    try:
        url = httpx2.URL(origin)
    except (httpx2.InvalidURL, TypeError):
        url = httpx2.URL("")
    rest = url.path.strip("/") or url.query or url.fragment or url.userinfo
    secure = url.scheme == "https" or (url.scheme == "http" and is_loopback(url.host))
    if rest or not url.host or not secure:
        raise BadRequest(
            "an origin is https://host or https://host:port, without a path",
            code="origin_invalid",
            repair="Name the API's origin; plain http is for this machine only.",
        )
    return origin_of(url)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The server's base URL without a trailing slash, and the app's API key or its identity.

    With an identity the key is empty. `issuer` is the server's public URL, to which an identity proves
    itself; empty: it is `url`. `cells` are the addresses to which a server may say that the tenant has moved.
    """

    url: str
    api_key: str = field(repr=False)
    identity: Identity | None = None
    issuer: str = ""
    cells: tuple[str, ...] = ()

    def moved_to(self, address: str) -> "ServerAddress":
        """The address of the cell where the tenant lives now, if the settings allow it.

        The API key would be sent there: a server that was taken over must not choose where. Raises
        BadRequest.
        """
        url = address.rstrip("/")
        if not any(_is_cell(url, cell) for cell in self.cells):
            raise BadRequest(
                f"the tenant lives at {url} now, as {self.url} says",
                code="tenant_moved",
                repair="If this is your operator's cell, set EVERGRANT_URL to it, or EVERGRANT_CELLS to the "
                "addresses that may be followed: https://eu.evergrant.example.com,https://*.example.net",
                context={"moved_to": url},
            )
        return replace(self, url=url, issuer=url if self.issuer else "")

    @classmethod
    def from_settings(
        cls,
        url: str | None = None,
        api_key: str | None = None,
        *,
        identity: Identity | None = None,
        issuer: str | None = None,
        allow_plain_http: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> "ServerAddress":
        """Arguments win over EVERGRANT_URL, EVERGRANT_API_KEY and EVERGRANT_API_KEY_FILE, and those over
        EVERGRANT_APP_ID with EVERGRANT_PRIVATE_KEY_FILE, with EVERGRANT_CERTIFICATE_FILE (and
        EVERGRANT_CERTIFICATE_KEY_FILE), or with EVERGRANT_WORKLOAD_TOKEN_FILE, the first that is set.
        EVERGRANT_ISSUER is the URL by default. EVERGRANT_CELLS names further addresses, with commas.

        Raises BadRequest when one is missing, a key file can't be read, the key can't stand in a header
        (RFC 9110 section 5.5), or it would travel in plain text (RFC 6750 section 5.3) to another machine.
        """
        env = os.environ if environ is None else environ
        base = url or env.get("EVERGRANT_URL")
        if not base:
            raise BadRequest("there is no URL", code="url_missing", repair=_NO_URL)
        _check(base, allow_plain_http or env.get("EVERGRANT_ALLOW_PLAIN_HTTP") == "1")
        url = base.rstrip("/")
        if api_key and identity:
            why = "an API key and an identity were both given"
            raise BadRequest(why, code="credential_ambiguous", repair="Give one of them.")
        key = api_key or ("" if identity else _api_key(env))
        issuer = (issuer or env.get("EVERGRANT_ISSUER") or "").rstrip("/")
        cells = tuple(_cell(name) for name in env.get("EVERGRANT_CELLS", "").split(",") if name.strip())
        if not key:
            return cls(url, "", identity or _identity(env), issuer or url, cells)
        _require_key(key)
        return cls(url, key, None, issuer, cells)


def _cell(text: str) -> str:
    """One of EVERGRANT_CELLS. Raises BadRequest unless it is https, or this machine."""
    cell = text.strip().rstrip("/")
    _check(cell.replace("://*.", "://any.", 1), allow_plain_http=False)
    return cell


def _is_cell(url: str, cell: str) -> bool:
    """Whether the address is this cell's, or one of the hosts below `https://*.`."""
    try:
        _check(url, allow_plain_http=False)
    except BadRequest:
        return False
    scheme, host, port = origin_of(httpx2.URL(url))
    if httpx2.URL(url).path.strip("/") or "://*." not in cell:
        return url == cell
    allowed = origin_of(httpx2.URL(cell.replace("://*.", "://any.", 1)))
    return (scheme, port) == (allowed[0], allowed[2]) and host.endswith(allowed[1].removeprefix("any"))


def _check(base: str, allow_plain_http: bool) -> None:
    try:
        parsed = httpx2.URL(base)
    except (httpx2.InvalidURL, TypeError):
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        why = "the URL is not an http(s) URL, or has a user name in it"
        raise BadRequest(why, code="url_invalid", repair=_URL)
    if parsed.path.rstrip("/").endswith("/v1"):
        why = "the URL ends in /v1, which is a part of the API's paths"
        raise BadRequest(why, code="url_invalid", repair="Leave out /v1 in EVERGRANT_URL.")
    if parsed.scheme == "http" and not is_loopback(parsed.host) and not allow_plain_http:
        raise BadRequest(
            f"plain http to {parsed.host} would show the API key and tokens to the network",
            code="plain_http_refused",
            repair="Use https, or accept it with EVERGRANT_ALLOW_PLAIN_HTTP=1.",
        )


def _api_key(env: Mapping[str, str]) -> str:
    if key := env.get("EVERGRANT_API_KEY"):
        return key
    if name := env.get("EVERGRANT_API_KEY_FILE"):
        return read_key_file(Path(name).expanduser())
    return ""


def _identity(env: Mapping[str, str]) -> Identity:
    app_id = env.get("EVERGRANT_APP_ID")
    if app_id and (name := env.get("EVERGRANT_PRIVATE_KEY_FILE")):
        return PrivateKey(app_id, Path(name).expanduser())
    if app_id and (name := env.get("EVERGRANT_CERTIFICATE_FILE")):
        key = env.get("EVERGRANT_CERTIFICATE_KEY_FILE")
        return Certificate(app_id, Path(name).expanduser(), Path(key).expanduser() if key else None)
    if app_id and (name := env.get("EVERGRANT_WORKLOAD_TOKEN_FILE")):
        return WorkloadToken(app_id, Path(name).expanduser())
    proofs = [name for name in _PROOFS if env.get(name)]
    if app_id and not proofs:
        why = "EVERGRANT_APP_ID is set, and no file that proves it"
        raise BadRequest(why, code="identity_incomplete", repair=f"Set {' or '.join(_PROOFS)}.")
    if proofs:
        why, repair = f"{proofs[0]} is set, and EVERGRANT_APP_ID isn't", "Set it to the app's id, app_…"
        raise BadRequest(why, code="identity_incomplete", repair=repair)
    raise BadRequest(
        "there is no API key, and no private key of an app",
        code="api_key_missing",
        repair="Set EVERGRANT_API_KEY or EVERGRANT_API_KEY_FILE; or EVERGRANT_APP_ID and "
        "EVERGRANT_PRIVATE_KEY_FILE, EVERGRANT_CERTIFICATE_FILE or EVERGRANT_WORKLOAD_TOKEN_FILE.",
    )


def _require_key(key: str) -> None:
    """Raises BadRequest, which doesn't quote the key; the HTTP library's error for such a header would."""
    if key[0] in "\"'" and key[-1] == key[0]:
        why = "the API key stands in quotes, which are no part of it"
        raise BadRequest(why, code="api_key_invalid", repair="Leave out the quotes, also in a key file.")
    if not key.startswith("evg_") and len(key) < 200 and Path(key).is_file():
        repair = "Set EVERGRANT_API_KEY_FILE to it, or give the text that is in the file."
        raise BadRequest("the API key is the name of a file", code="api_key_invalid", repair=repair)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise BadRequest(
            "the API key holds a character that can't stand in a header: a space, a line break or another "
            "character outside of visible ASCII",
            code="api_key_invalid",
            repair="Set EVERGRANT_API_KEY, or the content of EVERGRANT_API_KEY_FILE, to the key alone.",
        )


def read_key_file(path: Path) -> str:
    """The API key in a file, without the trailing line break. Raises BadRequest."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise BadRequest(
            f"the API key file {path} can't be read: {reason}",
            code="api_key_file_unreadable",
            repair="Check EVERGRANT_API_KEY_FILE or --api-key-file.",
        ) from None
    if not key:
        raise BadRequest(
            f"the API key file {path} is empty", code="api_key_file_empty", repair="Write the key into it."
        )
    return key
