"""What a client says about itself: in a registration (RFC 7591 section 2), or in a metadata document.

All of it is a stranger's word. Pure.
"""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit

from evergrant_server.core.oauth.clients import ClientAuthMethod
from evergrant_server.core.oauth.redirects import (
    MOST_REDIRECT_URIS,
    RedirectKind,
    kind_of_redirect,
    redirect_problem,
)

LONGEST_NAME = 80
LONGEST_CLIENT_ID = 2000
GRANT_TYPES = ("authorization_code", "refresh_token")
_SECRETS = ("client_secret_basic", "client_secret_post", "client_secret_jwt")
_WEB, _NATIVE = "web", "native"

KeyCheck = Callable[[Mapping[str, Any]], dict[str, Any]]  # raises ValueError


class MetadataRefused(Exception):
    """An error of RFC 7591 section 3.2.2. The description quotes nothing of the metadata."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description


@dataclass(frozen=True)
class ClientMetadata:
    """The part of a client's metadata that Evergrant uses."""

    name: str
    redirect_uris: tuple[str, ...]
    application_type: str
    auth_method: ClientAuthMethod
    jwks: dict[str, Any] | None = None
    client_uri: str | None = None


def read_client_metadata(
    given: Mapping[str, Any], check_keys: KeyCheck, *, any_scheme: bool = False
) -> ClientMetadata:
    """Raises MetadataRefused. Members that Evergrant doesn't use are left out (RFC 7591 section 2)."""
    uris = _redirect_uris(given, any_scheme)
    method = _auth_method(given)
    jwks = _keys(given, method, check_keys)
    _require_code_flow(given)
    return ClientMetadata(
        name=_name(given),
        redirect_uris=uris,
        application_type=_application_type(given, uris),
        auth_method=method,
        jwks=jwks,
        client_uri=_https(given.get("client_uri")),
    )


def read_client_document(client_id: str, given: Mapping[str, Any], check_keys: KeyCheck) -> ClientMetadata:
    """The metadata document at the URL `client_id` (draft-ietf-oauth-client-id-metadata-document section 4).

    Raises MetadataRefused, also for a document that names another client, and for one with a secret.
    """
    if given.get("client_id") != client_id:
        _refuse("invalid_client_metadata", "its client_id isn't the URL at which it was read")
    if "client_secret" in given or "client_secret_expires_at" in given:
        _refuse("invalid_client_metadata", "a public document has no client_secret")
    return read_client_metadata(given, check_keys)


def is_document_url(client_id: str) -> bool:
    """Whether a client id is the URL of a metadata document: https, with a path that says which, and nothing
    by which two texts would name one document (section 3)."""
    if len(client_id) > LONGEST_CLIENT_ID or not client_id.startswith("https://") or "#" in client_id:
        return False
    try:
        parts = urlsplit(client_id)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    plain = client_id.isascii() and client_id.isprintable() and " " not in client_id and "\\" not in client_id
    dots = any(it.lower().replace("%2e", ".") in (".", "..") for it in parts.path.split("/"))
    return plain and has_host and "@" not in parts.netloc and len(parts.path) > 1 and not dots


def shown_name(text: object) -> str:
    """A client's name as a page shows it: without what changes the direction or the look of the text around
    it, and short."""
    if not isinstance(text, str):
        return ""
    kept = (" " if unicodedata.category(it)[0] in "CZ" else it for it in text[:1000])
    plain = unicodedata.normalize("NFC", " ".join("".join(kept).split()))
    marks, name = 0, ""
    for char in plain:  # at most two marks on a letter: a heap of them covers other lines
        marks = marks + 1 if unicodedata.combining(char) else 0
        name += char if marks <= 2 else ""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _name(given: Mapping[str, Any]) -> str:
    name = given.get("client_name")
    if name is not None and not isinstance(name, str):
        _refuse("invalid_client_metadata", "client_name is a text")
    return shown_name(name)


def _redirect_uris(given: Mapping[str, Any], any_scheme: bool) -> tuple[str, ...]:
    uris = given.get("redirect_uris")
    if not isinstance(uris, list) or not 0 < len(cast("list[Any]", uris)) <= MOST_REDIRECT_URIS:
        _refuse("invalid_redirect_uri", f"redirect_uris lists 1 to {MOST_REDIRECT_URIS} URIs")
    for uri in cast("list[Any]", uris):
        problem = redirect_problem(uri, any_scheme=any_scheme) if isinstance(uri, str) else "it is a text"
        if problem is not None:
            _refuse("invalid_redirect_uri", problem)
    return tuple(dict.fromkeys(cast("list[str]", uris)))


def _application_type(given: Mapping[str, Any], uris: tuple[str, ...]) -> str:
    """OpenID Connect Registration 1.0 section 2: a web client has https alone. Without a type the redirect
    URIs say it: earlier MCP clients send none."""
    kinds = {kind_of_redirect(it) for it in uris}
    said = given.get("application_type")
    if said is None:
        return _WEB if kinds == {RedirectKind.WEB} else _NATIVE
    if said not in (_WEB, _NATIVE):
        _refuse("invalid_client_metadata", f"application_type is {_WEB} or {_NATIVE}")
    if said == _WEB and kinds != {RedirectKind.WEB}:
        _refuse("invalid_redirect_uri", f"a client of the type {_WEB} has https redirect URIs alone")
    return str(said)


def _auth_method(given: Mapping[str, Any]) -> ClientAuthMethod:
    """No secret is given out: a client that asks for one becomes a public one (RFC 7591 section 2 lets a
    server replace what was asked for)."""
    said = given.get("token_endpoint_auth_method", ClientAuthMethod.NONE.value)
    if said in _SECRETS:
        return ClientAuthMethod.NONE
    try:
        return ClientAuthMethod(said)
    except ValueError:
        known = ", ".join(ClientAuthMethod)
        _refuse("invalid_client_metadata", f"token_endpoint_auth_method is one of {known}")


def _keys(given: Mapping[str, Any], method: ClientAuthMethod, check: KeyCheck) -> dict[str, Any] | None:
    if method is ClientAuthMethod.NONE:
        return None
    keys = given.get("jwks")
    if not isinstance(keys, dict):
        _refuse("invalid_client_metadata", f"{method} needs the client's public keys in jwks")
    try:
        return check(cast("dict[str, Any]", keys))
    except ValueError as why:
        _refuse("invalid_client_metadata", f"jwks: {why}")


def _require_code_flow(given: Mapping[str, Any]) -> None:
    for member, needed in (("grant_types", "authorization_code"), ("response_types", "code")):
        said = given.get(member)
        if said is not None and (not isinstance(said, list) or needed not in said):
            _refuse("invalid_client_metadata", f"{member} has to list {needed}: there is no other flow")


def _https(url: object) -> str | None:
    """An address to show; None for anything else, which is no reason to refuse a client."""
    known = isinstance(url, str) and url.startswith("https://") and redirect_problem(url) is None
    return str(url) if known else None


def _refuse(error: str, description: str) -> NoReturn:
    raise MetadataRefused(error, description)
