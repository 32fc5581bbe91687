"""Removes secrets and personal data from everything that a trial shows or writes. Pure.

A reply keeps the values of the fields that OAuth names or that the definition reads, and only those.
Kept texts lose every value that the trial has learnt, and all that looks like a token, an address or an
id, since providers quote requests in their error messages.
"""

import html
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any
from urllib.parse import quote, quote_plus

from evergrant_server.core.connections.id_token import claims_of
from evergrant_server.core.secret import Secret

REDACTED = "redacted"
_SHORTEST_PERSONAL = 4
_PART = 8  # characters of a secret that a message quotes in part
_TOKEN_FIELDS = frozenset({"token_type", "scope", "scopes", "issued_token_type", "interval"})
_OAUTH_FIELDS = frozenset({"access_token", "refresh_token", "id_token", "expires_in"})
_ERROR_FIELDS = frozenset(
    (
        *("error", "error_description", "error_code", "error_msg", "error_message", "error_reason"),
        *("error_subcode", "suberror", "sub_error", "errors", "err", "errcode", "errmsg", "errno", "fault"),
        *("code", "status", "status_code", "statuscode", "message", "msg", "reason", "title", "detail"),
        *("description", "type", "result", "ok", "success", "http_code", "response_code"),
    )
)
_KIND_FIELDS = (  # say nothing of a person
    *("type", "kind", "object", "role", "state", "locale", "plan"),
    *("response_type", "token_use", "errorCode", "error_codes"),
)
_EMAIL = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)*")
UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}\b")
_IPV4 = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_IPV6 = re.compile(r"\b(?:[0-9a-fA-F]{1,4}:){3,7}[0-9a-fA-F:]{1,4}")
_URL_REST = re.compile(r"(https?://)(?:[^\s/@\"'<>]*@)?([^\s?#\"'<>]*)[?#][^\s\"'<>]*")
_LONG_NUMBER = re.compile(r"(?<![A-Za-z0-9])\d{7,}(?![A-Za-z0-9])")
_OPAQUE = re.compile(r"[A-Za-z0-9_\-]{16,}")
_DULL_CLAIMS = (
    *("iss", "aud", "azp", "exp", "iat", "nbf", "auth_time", "acr", "amr", "typ"),
    *("token_use", "email_verified", "locale", "zoneinfo"),
)
_FIELD_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.:-]{0,63}")
_KIND_CHANGE = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[0-9])(?=[A-Za-z])")


class Redactor:
    """What a trial must never show: the values that it has learnt so far."""

    def __init__(self) -> None:
        self._parts: set[str] = set()  # every part of a long secret, in lower case
        self._words: set[str] = set()  # short secrets and personal data: replaced as whole words

    def learn(self, *secrets: Secret | str | None) -> None:
        """Remember secrets, in the ways in which they are written. A part of a long one is a secret too."""
        for secret in secrets:
            value = secret.reveal() if isinstance(secret, Secret) else secret
            if not value:
                continue
            for written in {value, quote(value, safe=""), quote_plus(value), html.escape(value)}:
                if len(written) < _PART:
                    self._words.add(written)
                low = written.lower()
                self._parts |= _parts_of(low) - _INVENTED

    def learn_personal(self, value: Any, name: str = "") -> None:
        """Remember every text and number in a value: a person's name may come again in a message.

        `name` is its field's, by which the parts of a person's name are remembered as well.
        """
        match value:
            case dict():
                for field, item in value.items():
                    self.learn_personal(item, str(field))
            case list() | tuple():
                for item in value:
                    self.learn_personal(item, name)
            case str() | int() | float() if not isinstance(value, bool):
                text = str(value)
                parts = text.split() if "name" in name.lower() else []
                address = [text.partition("@")[0]] if "@" in text else []
                words = (text, *parts, *address)
                self._words |= {word for word in words if len(word) >= _SHORTEST_PERSONAL}

    def learn_id_token(self, token: Secret | None) -> None:
        """Remember an id token and whom it describes."""
        self.learn(token)
        if token is not None:
            claims = claims_of(token)
            self.learn_personal({name: value for name, value in claims.items() if name not in _DULL_CLAIMS})

    def text(self, text: str) -> str:
        """The text without what was learnt and what looks like a token, an address, an id or a number."""
        for word in sorted(self._words, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", REDACTED, text, flags=re.IGNORECASE)
        text = _URL_REST.sub(r"\1\2", self.without_secrets(text))
        for pattern in (UUID, _IPV4, _IPV6, _LONG_NUMBER):
            text = pattern.sub(REDACTED, text)
        return _OPAQUE.sub(lambda run: REDACTED if _looks_random(run.group()) else run.group(), text)

    def line(self, text: str) -> str:
        """As `text`, for a terminal, which a provider's words must not steer."""
        return "".join(char if char.isprintable() else " " for char in self.text(text))

    def without_secrets(self, text: str) -> str:
        """The text without secrets, whole or in part, and without e-mail addresses."""
        low = text.lower()
        secret = bytearray(len(text))
        if len(low) == len(text):  # lower case may be longer, in few languages
            for at in range(len(low) - _PART + 1):
                if low[at : at + _PART] in self._parts:
                    secret[at : at + _PART] = b"\x01" * _PART
            runs = groupby(zip(text, secret, strict=True), key=lambda pair: pair[1])
            text = "".join(REDACTED if hidden else "".join(c for c, _ in run) for hidden, run in runs)
        else:
            text = REDACTED
        return _EMAIL.sub(REDACTED, text)

    def fields(self, data: Mapping[str, Any], keep: "KeptFields") -> dict[str, Any]:
        """The fields of a reply. Secrets become the placeholders of `keep`, other values REDACTED or 1."""
        self._object(data, "", keep)  # learns the names that come after the text that has them
        return self._object(data, "", keep)

    def _object(self, data: Mapping[str, Any], path: str, keep: "KeptFields") -> dict[str, Any]:
        redacted: dict[str, Any] = {}
        for name, value in data.items():
            known = name in keep.names or (_FIELD_NAME.fullmatch(name) and self.text(name) == name)
            plain = name if known else REDACTED
            place = f"{path}.{plain}".removeprefix(".")
            while plain in redacted:
                plain += "_"
            redacted[plain] = self._value(value, name, place, keep)
        return redacted

    def _value(self, value: Any, name: str, path: str, keep: "KeptFields") -> Any:
        match value:
            case dict():
                return self._object(value, path, keep)
            case list():
                # the path of an item ends with its place, and its name is the list's
                return [self._value(item, name, f"{path}.{at}", keep) for at, item in enumerate(value)]
            case bool() | None:
                return value
            case str() if value in keep.placeholders:
                return keep.placeholders[value]
            case str() if value == "":
                return value
            case str() if keep.keeps_scopes(name, path):
                return self.without_secrets(value)
            case str() | int() | float() if keep.is_lifetime(name, value):
                return REDACTED if str(value) in self._words else value
            case str() if keep.keeps(name, path):
                return self.text(value)
            case int() | float() if keep.keeps(name, path):
                return 1 if str(value) in self._words else value
            case _:
                if name not in _KIND_FIELDS:
                    self.learn_personal(value, name)
                return REDACTED if isinstance(value, str) else 1


class KeptFields:
    """The fields of a reply whose values a vector keeps, and the placeholders of its secrets."""

    def __init__(
        self,
        paths: Iterable[str],
        scope_path: str | None,
        other_paths: Iterable[str],
        placeholders: Mapping[str, str],
        *,
        error: bool,
    ) -> None:
        self.placeholders = placeholders
        self._paths = tuple(paths)
        self._scopes = (scope_path,) if scope_path else ()
        self._kept = _TOKEN_FIELDS | _ERROR_FIELDS if error else _TOKEN_FIELDS
        named = (*self._paths, *self._scopes, *other_paths)
        self.names = self._kept | _OAUTH_FIELDS | {part for path in named for part in path.split(".")}

    def keeps(self, name: str, path: str) -> bool:
        return name.lower() in self._kept or _is_at(path, self._paths)

    def keeps_scopes(self, name: str, path: str) -> bool:
        return name in ("scope", "scopes") or _is_at(path, self._scopes)

    def is_lifetime(self, name: str, value: str | float) -> bool:
        """Whether it is a number of seconds, or a date, under a name that says so."""
        return "expire" in name.lower() and str(value).replace(".", "", 1).isdecimal()


def _is_at(path: str, places: tuple[str, ...]) -> bool:
    """Whether it is one of the places, within an envelope or a list as well."""
    return any(path == place or path.endswith(f".{place}") for place in places) or any(
        path.startswith(f"{place}.") and path.removeprefix(f"{place}.").isdigit() for place in places
    )


def _parts_of(text: str) -> set[str]:
    return {text[at : at + _PART] for at in range(len(text) - _PART + 1)}


_INVENTED = _parts_of("y2xpzw50lte6cznjcmv0")  # the vector's own client, as HTTP Basic writes it


def _looks_random(run: str) -> bool:
    digits = sum(char.isdigit() for char in run)
    return len(_KIND_CHANGE.findall(run)) >= len(run) * 0.28 or (len(run) >= 20 and digits >= 3)
