"""Arguments that are read in a special way, files that they name, and a command line that can't be meant."""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, cast

import yaml
from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    Token,
    UnknownCommandError,
    UnusedCliTokensError,
)
from cyclopts.validators import Number

from evergrant.cli.options import line_to_copy
from evergrant.errors import BadRequest

_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([smhd]?)", re.IGNORECASE)
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def _one_each(_: object, scopes: tuple[str, ...] | None) -> None:
    """A scope has no comma in any provider of the catalogue, and no space in OAuth (RFC 6749 section 3.3)."""
    for scope in scopes or ():
        if (
            parts := [part for part in re.split(r"[,\s]+", scope) if part]
            if re.search(r"[,\s]", scope)
            else []
        ):
            raise ValueError(f"give each scope by itself: {' '.join(f'--scope {part}' for part in parts)}")


def _seconds(_: type[float], tokens: Sequence[Token]) -> float:
    duration = _TIME.fullmatch(tokens[0].value.strip())
    if duration is None:
        raise ValueError("give seconds (600), or a number with s, m, h or d (10m)")
    return float(duration[1]) * _UNITS_S[duration[2].lower()]


Scopes = Annotated[tuple[str, ...], Parameter(validator=_one_each)]
Seconds = Annotated[float, Parameter(converter=_seconds)]


_NAMED = re.compile(r"\w*secret\w*\s*[=:]", re.IGNORECASE)


def read_secret(file: Path) -> str:
    """The secret in a file. Raises BadRequest for one that holds more, such as a line of settings."""
    text = read_text(file).strip()
    surplus = (
        "its name" if _NAMED.match(text)
        else "quotes" if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]
        else "JSON" if text.startswith("{")
        else "several words or lines" if len(text.split()) > 1
        else None
    )  # fmt: skip
    if surplus is not None:
        raise argument_error(f"{file} holds {surplus} beside the secret: write the secret alone into it")
    return text


SERVER_COMMANDS = (
    *("dev", "serve", "worker", "doctor", "reconcile", "db", "keys", "tenants", "authority", "openapi"),
)
_FORMS = {
    datetime: "a date with its zone, such as 2027-01-01T00:00:00Z",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def usage_error(error: CycloptsError) -> str:
    """One line, which ends with the command for its help."""
    chain = tuple(error.command_chain or ())
    unused: tuple[str, ...] = tuple(getattr(error, "unused_tokens", None) or ())
    message = " ".join(str(error).split())
    if isinstance(error, UnknownCommandError) and not chain and unused and unused[0] in SERVER_COMMANDS:
        line = line_to_copy("python", "-m", "evergrant_server", *unused)
        in_a_checkout = " (in a checkout: make doctor)" if unused[0] == "doctor" else ""
        return f"{unused[0]} is a command of the server: {line}{in_a_checkout}"
    if isinstance(error, UnusedCliTokensError):
        message = f"{len(unused)} more than the command takes."  # which may be a secret
    if isinstance(error, MissingArgumentError) and error.argument and error.keyword is None:
        message = f"{error.argument.name} is missing"  # the library's words are of an option without a value
    if isinstance(error, CoercionError) and error.msg is None and error.target_type in _FORMS:
        name = error.token.keyword if error.token and error.token.keyword else "an argument"
        message = f"Invalid value for {name}: write {_FORMS[error.target_type]}."
    return f"{message} (See {' '.join(('evergrant', *chain))} --help.)"


InputFile = Annotated[Path, Parameter(allow_leading_hyphen=True)]  # - is the standard input


def _generation(_: type[int], tokens: Sequence[Token]) -> int:
    """A generation as a lease shows it. By itself cyclopts reads 7.6 as 8, and none as no value."""
    value = tokens[0].value
    if not (value.isascii() and value.isdecimal() and int(value) > 0):
        raise ValueError("a generation is a whole number from 1 on, as the lease shows it")
    return int(value)


Generation = Annotated[int, Parameter(converter=_generation)]


def read_text(file: Path) -> str:
    """The text of a file, or of the standard input for `-`. Raises BadRequest."""
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise argument_error(f"{file}: {reason}") from None


def read_object(file: Path) -> dict[str, object]:
    """The object in a file of JSON or YAML, of which JSON is a part. Raises BadRequest."""
    try:
        value: object = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise argument_error(f"{file}{where}: is neither YAML nor JSON") from None
    if not isinstance(value, dict):
        raise argument_error(f"{file} is no object: it begins with the members' names, such as name: acme")
    return cast(dict[str, object], value)


def argument_error(detail: str) -> BadRequest:
    return BadRequest(detail, code="invalid_request", repair="Correct the argument.")


def header_of(text: str) -> tuple[str, str]:
    """An argument of the form NAME: VALUE. Raises BadRequest."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argument_error(f"{text!r} is not NAME: VALUE")
    return name.strip(), value.strip()


def name_and_value(text: str) -> tuple[str, str]:
    """An argument of the form NAME=VALUE. Raises BadRequest."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argument_error(f"{text!r} is not NAME=VALUE")
    return name, value


Days = Annotated[float, Parameter(validator=Number(gt=0))]


def require_audit_extra() -> None:
    """Raise BadRequest where the extra `audit` isn't installed."""
    if find_spec("cryptography") is None:
        repair = "Install it: pip install 'evergrant[audit]'."
        raise BadRequest("this needs the package cryptography", code="extra_missing", repair=repair)


def in_utc(at: datetime | None) -> datetime | None:
    """The moment of an argument, which without a zone is UTC."""
    return at if at is None or at.tzinfo else at.replace(tzinfo=UTC)
