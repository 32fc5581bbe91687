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
    document: Mapping[str, Any], check_keys: KeyCheck, *, any_scheme: bool = False
) -> ClientMetadata:
    """Raises MetadataRefused. Members that Evergrant doesn't use are left out (RFC 7591 section 2)."""
    uris = _redirect_uris(document, any_scheme)
    method = _auth_method(document)
    jwks = _keys(document, method, check_keys)
    _require_code_flow(document)
    return ClientMetadata(
        name=_name(document),
        redirect_uris=uris,
        application_type=_application_type(document, uris),
        auth_method=method,
        jwks=jwks,
        client_uri=_https(document.get("client_uri")),
    )


def read_client_document(client_id: str, document: Mapping[str, Any], check_keys: KeyCheck) -> ClientMetadata:
    """The metadata document at the URL `client_id` (draft-ietf-oauth-client-id-metadata-document section 4).

    Raises MetadataRefused, also for a document that names another client, and for one with a secret.
    """
    if document.get("client_id") != client_id:
        _refuse("invalid_client_metadata", "its client_id isn't the URL at which it was read")
    if "client_secret" in document or "client_secret_expires_at" in document:
        _refuse("invalid_client_metadata", "a public document has no client_secret")
    return read_client_metadata(document, check_keys)


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
    dots = any(segment.lower().replace("%2e", ".") in (".", "..") for segment in parts.path.split("/"))
    return plain and has_host and "@" not in parts.netloc and len(parts.path) > 1 and not dots


def shown_name(text: object) -> str:
    """A client's name as a page shows it: without what changes the direction or the look of the text around
    it, and short."""
    if not isinstance(text, str):
        return ""
    kept = (" " if unicodedata.category(character)[0] in "CZ" else character for character in text[:1000])
    plain = unicodedata.normalize("NFC", " ".join("".join(kept).split()))
    marks, name = 0, ""
    for char in plain:  # at most two marks on a letter: a heap of them covers other lines
        marks = marks + 1 if unicodedata.combining(char) else 0
        name += char if marks <= 2 else ""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _name(document: Mapping[str, Any]) -> str:
    name = document.get("client_name")
    if name is not None and not isinstance(name, str):
        _refuse("invalid_client_metadata", "client_name is a text")
    return shown_name(name)


def _redirect_uris(document: Mapping[str, Any], any_scheme: bool) -> tuple[str, ...]:
    uris = document.get("redirect_uris")
    if not isinstance(uris, list) or not 0 < len(cast("list[Any]", uris)) <= MOST_REDIRECT_URIS:
        _refuse("invalid_redirect_uri", f"redirect_uris lists 1 to {MOST_REDIRECT_URIS} URIs")
    for uri in cast("list[Any]", uris):
        problem = redirect_problem(uri, any_scheme=any_scheme) if isinstance(uri, str) else "it is a text"
        if problem is not None:
            _refuse("invalid_redirect_uri", problem)
    return tuple(dict.fromkeys(cast("list[str]", uris)))


def _application_type(document: Mapping[str, Any], uris: tuple[str, ...]) -> str:
    """OpenID Connect Registration 1.0 section 2: a web client has https alone. Without a type the redirect
    URIs say it: earlier MCP clients send none."""
    kinds = {kind_of_redirect(uri) for uri in uris}
    value = document.get("application_type")
    if value is None:
        return _WEB if kinds == {RedirectKind.WEB} else _NATIVE
    if value not in (_WEB, _NATIVE):
        _refuse("invalid_client_metadata", f"application_type is {_WEB} or {_NATIVE}")
    if value == _WEB and kinds != {RedirectKind.WEB}:
        _refuse("invalid_redirect_uri", f"a client of the type {_WEB} has https redirect URIs alone")
    return str(value)


def _auth_method(document: Mapping[str, Any]) -> ClientAuthMethod:
    """No secret is given out: a client that asks for one becomes a public one (RFC 7591 section 2 lets a
    server replace what was asked for)."""
    value = document.get("token_endpoint_auth_method", ClientAuthMethod.NONE.value)
    if value in _SECRETS:
        return ClientAuthMethod.NONE
    try:
        return ClientAuthMethod(value)
    except ValueError:
        known = ", ".join(ClientAuthMethod)
        _refuse("invalid_client_metadata", f"token_endpoint_auth_method is one of {known}")


def _keys(document: Mapping[str, Any], method: ClientAuthMethod, check: KeyCheck) -> dict[str, Any] | None:
    if method is ClientAuthMethod.NONE:
        return None
    keys = document.get("jwks")
    if not isinstance(keys, dict):
        _refuse("invalid_client_metadata", f"{method} needs the client's public keys in jwks")
    try:
        return check(cast("dict[str, Any]", keys))
    except ValueError as why:
        _refuse("invalid_client_metadata", f"jwks: {why}")


def _require_code_flow(document: Mapping[str, Any]) -> None:
    for member, needed in (("grant_types", "authorization_code"), ("response_types", "code")):
        value = document.get(member)
        if value is not None and (not isinstance(value, list) or needed not in value):
            _refuse("invalid_client_metadata", f"{member} has to list {needed}: there is no other flow")


def _https(url: object) -> str | None:
    """An address to show; None for anything else, which is no reason to refuse a client."""
    known = isinstance(url, str) and url.startswith("https://") and redirect_problem(url) is None
    return str(url) if known else None


def _refuse(error: str, description: str) -> NoReturn:
    raise MetadataRefused(error, description)
