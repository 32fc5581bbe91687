"""Finds what must not be quoted: the secrets of a request, and the tokens of its reply. Pure."""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote, unquote_plus

import httpx2

from evergrant_server.core.provider_words import looks_secret

_SECRET_NAME = re.compile(r"token|secret|code|verifier|assertion|password|key|proof|signature", re.IGNORECASE)
_PUBLIC = frozenset(
    {
        "grant_type",
        "response_type",
        "redirect_uri",
        "scope",
        "client_id",
        "client_assertion_type",
        "subject_token_type",
        "requested_token_type",
        "token_type_hint",
        "audience",
        "resource",
    }
)
_TOKEN_NAME = re.compile(r"token$|secret$|^access|^refresh", re.IGNORECASE)
_QUOTED = re.compile(r'"([^"]+)"')
_PLAIN_HEADERS = frozenset({"host", "accept", "accept-encoding", "connection", "user-agent", "content-type"})


def sent_values(request: httpx2.Request) -> frozenset[str]:
    """The secrets of a request: in its query, its body and its headers, decoded."""
    found = set(_secret_values(parse_qsl(request.url.query.decode("latin-1"))))
    found.update(_secret_values(_body_fields(request.content.decode("utf-8", "replace"))))
    for name, value in request.headers.items():
        if name == "authorization":
            found.update(_credentials(value))
        elif name not in _PLAIN_HEADERS:
            found.update(_secret_values([(name, value)]))
    return frozenset(found)


def received_tokens(data: dict[str, Any]) -> Iterator[str]:
    """The tokens of a reply, wherever it nests them."""
    return (value for name, value in _leaves(data) if _TOKEN_NAME.search(name))


def _secret_values(fields: list[tuple[str, str]]) -> Iterator[str]:
    for name, value in fields:
        if name not in _PUBLIC and (_SECRET_NAME.search(name) or looks_secret(value)):
            yield value


def _body_fields(text: str) -> list[tuple[str, str]]:
    if not text.lstrip().startswith(("{", "[")):
        return parse_qsl(text)
    try:
        return list(_leaves(json.loads(text)))
    except (ValueError, RecursionError):
        return []


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a JSON value with the names of their members."""
    match data:
        case dict():
            for member, value in data.items():
                yield from _leaves(value, member)
        case list():
            for value in data:
                yield from _leaves(value, name)
        case str():
            yield name, data
        case _:
            pass


def _credentials(header: str) -> Iterator[str]:
    """Those of an Authorization header: also the password of Basic ones (RFC 6749 section 2.3.1), and the
    parameters of OAuth 1.0a (RFC 5849 section 3.5.1)."""
    scheme, _, value = header.partition(" ")
    yield value
    yield from map(unquote, _QUOTED.findall(value))
    if scheme.lower() != "basic":
        return
    try:
        user, _, password = base64.b64decode(value).decode("latin-1").partition(":")
    except (binascii.Error, ValueError):
        return
    secret = password or user
    yield from (secret, unquote_plus(secret))
