"""The options that every command has, and arguments that are read in a special way."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from cyclopts import Parameter, Token

from evergrant.cli.output import Format
from evergrant.errors import BadRequest
from evergrant.server import read_key_file
from evergrant.sync_client import Evergrant


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """The API key itself is no option: every process of the machine could read it."""

    output: Annotated[Format, Parameter(name=["--output", "-o"])] = Format.TABLE
    "As a table for people, or as JSON."

    url: str | None = None
    "Evergrant's URL; by default EVERGRANT_URL."

    api_key_file: Path | None = None
    "File with the app's API key; by default EVERGRANT_API_KEY or EVERGRANT_API_KEY_FILE."

    def client(self) -> Evergrant:
        return Evergrant(self.url, read_key_file(self.api_key_file) if self.api_key_file else None)


DEFAULTS = Options()


def _generation(_: type[int], tokens: Sequence[Token]) -> int:
    """A generation as a lease shows it. By itself cyclopts reads 7.6 as 8, and none as no value."""
    value = tokens[0].value
    if not (value.isascii() and value.isdecimal() and int(value) > 0):
        raise ValueError("a generation is a whole number from 1 on, as the lease shows it")
    return int(value)


Generation = Annotated[int, Parameter(converter=_generation)]
InputFile = Annotated[Path, Parameter(allow_leading_hyphen=True)]  # - is the standard input


def read_text(file: Path) -> str:
    """The text of a file, or of the standard input for `-`. Raises BadRequest."""
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise argument_error(f"{file}: {reason}") from None


def read_json_object(file: Path) -> dict[str, object]:
    """The JSON object in a file. Raises BadRequest."""
    try:
        value: object = json.loads(read_text(file))
    except ValueError:
        raise argument_error(f"{file} is not JSON") from None
    if not isinstance(value, dict):
        raise argument_error(f"{file} is not a JSON object")
    return cast(dict[str, object], value)


def argument_error(detail: str) -> BadRequest:
    return BadRequest(detail, code="invalid_request", repair="Correct the argument.")
