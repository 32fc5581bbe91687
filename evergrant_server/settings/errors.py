"""What is wrong with the settings of a process, in words that name the variable and the repair.

Reads names and the forms of values that would be misread without a word; never quotes a value, which may
hold a password.
"""

import os
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path

from dotenv.parser import Binding, parse_stream
from pydantic import ValidationError

PREFIX = "EVERGRANT_"
SETTINGS_FILE = "evergrant.env"
_CLIENT_VARIABLES = {
    *("EVERGRANT_URL", "EVERGRANT_GATEWAY_URL", "EVERGRANT_API_KEY", "EVERGRANT_API_KEY_FILE"),
    *("EVERGRANT_APP_ID", "EVERGRANT_PRIVATE_KEY_FILE", "EVERGRANT_ISSUER"),
    *("EVERGRANT_CERTIFICATE_FILE", "EVERGRANT_CERTIFICATE_KEY_FILE", "EVERGRANT_AUDIT_LOG"),
}
_PLAIN = {
    "bool_parsing": "use true or false",
    "int_parsing": "must be an integer: digits alone",
    "literal_error": "use {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}
_QUOTES = ('"', "'")


def errors_in_words(error: ValidationError) -> Iterator[str]:
    """One line per invalid setting."""
    for problem in error.errors(include_input=False, include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in _PLAIN:
            message = _PLAIN[problem["type"]].format(**problem.get("ctx", {}))
        name = ".".join(str(part) for part in problem["loc"])
        yield f"{PREFIX}{name.upper()}: {message}" if name else message


class BadSettings(ValueError):
    """A setting that can't be used; the message names it and says what would be right."""


def suspicious_variables(known: Collection[str]) -> list[str]:
    """One line per variable that would be ignored, or whose quotes would be a part of its value.

    `known` are the server's settings. A file that can't be read is the only line.
    """
    try:
        bindings = _bindings(Path(SETTINGS_FILE))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        return [f"{Path(SETTINGS_FILE).absolute()}: can't be read ({reason}); correct or remove it"]
    lines = [
        f"{SETTINGS_FILE}, line {binding.original.line}: is not NAME=value; write such as {PREFIX}PORT=8480"
        for binding in bindings
        if binding.error
    ]
    in_file = {binding.key.upper() for binding in bindings if binding.key}
    for name in sorted({*(name.upper() for name in os.environ), *in_file}):
        if name in known or name in _CLIENT_VARIABLES:
            continue
        bare = [f"{PREFIX}{name}"] if name in in_file and f"{PREFIX}{name}" in known else []
        if near := bare or _meant(name, known):
            lines.append(f"{name}: there is no such setting; did you mean {near[0]}?")
    return lines + [
        f"{name}: remove the quotes around its value: they would be a part of it"
        for name, value in sorted(os.environ.items())
        if name.upper() in known and len(value) > 1 and value[0] in _QUOTES and value[-1] == value[0]
    ]


def _bindings(file: Path) -> list[Binding]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            return list(parse_stream(stream))
    except FileNotFoundError:
        return []


def _meant(name: str, known: Collection[str]) -> list[str]:
    """The setting that a name is almost, its prefix included. Other programs' variables are none."""
    prefix, _, rest = name.partition("_")
    if f"{prefix}_" != PREFIX and not get_close_matches(prefix, [PREFIX.rstrip("_")], cutoff=0.85):
        return []
    return get_close_matches(f"{PREFIX}{rest}", known, n=1, cutoff=0.85)
