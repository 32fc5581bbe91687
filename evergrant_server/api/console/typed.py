"""What is typed into the console's forms, as the bodies of the API take it."""

import json
import re
from collections.abc import Mapping
from typing import Any

from evergrant_server.problems import invalid_request

# a member of a JWK that only its owner has (RFC 7518 section 6), or the first line of a private key's PEM
_PRIVATE = re.compile(r'"(?:d|p|q|dp|dq|qi|oth|k)"\s*:|PRIVATE KEY')


def without_private_keys(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields without those that hold a private key: what is sent back to a browser."""
    return {name: text for name, text in fields.items() if not _PRIVATE.search(text)}


def lines_of(fields: Mapping[str, str], field: str) -> list[str]:
    """The lines of a field, without blank ones."""
    return [line for text in fields.get(field, "").splitlines() if (line := text.strip())]


def words_in(fields: Mapping[str, str], field: str) -> list[str]:
    """What stands in a field between spaces, commas and ends of lines."""
    return fields.get(field, "").replace(",", " ").split()


def whole_number(fields: Mapping[str, str], field: str) -> int | None:
    """A number of a form; None: nothing is typed. Raises Failure INVALID_REQUEST."""
    text = fields.get(field, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise invalid_request(field, f"{field}: use a whole number.")
    return int(text)


def pairs_of(fields: Mapping[str, str], field: str) -> dict[str, str]:
    """The lines `name = value` of a field. Raises Failure INVALID_REQUEST."""
    pairs: dict[str, str] = {}
    for line in lines_of(fields, field):
        name, sign, value = (part.strip() for part in line.partition("="))
        if not (name and sign and value):
            raise invalid_request(field, f"{field}: write each line as name = value.")
        if name in pairs:
            raise invalid_request(field, f"{field}: {name} stands there twice.")
        pairs[name] = value
    return pairs


def moment_of(fields: Mapping[str, str], field: str) -> str | None:
    """A moment of a form, which is in UTC, as the API reads it; None: nothing is typed."""
    text = fields.get(field, "")
    return None if not text else text if text.endswith("Z") or "+" in text else f"{text}Z"


def json_object(fields: Mapping[str, str], field: str) -> dict[str, Any]:
    """The JSON object that is typed. Raises Failure INVALID_REQUEST."""
    try:
        value = json.loads(fields.get(field, ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise invalid_request(field, f"{field}: it isn't a JSON object.")
    return value  # pyright: ignore[reportUnknownVariableType]  # JSON's values
