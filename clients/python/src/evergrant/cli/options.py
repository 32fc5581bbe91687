"""The options every command has, and how a generation is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from evergrant.cli.output import Format
from evergrant.sync_client import Evergrant
from evergrant.target import read_key_file


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """The key itself is no option: every process of the machine could read it."""

    output: Annotated[Format, Parameter(name=["--output", "-o"])] = Format.TABLE
    "As a table for people, or as JSON."

    url: str | None = None
    "Evergrant's URL; by default EVERGRANT_URL."

    api_key_file: Path | None = None
    "File with the app's API key; by default EVERGRANT_API_KEY or EVERGRANT_API_KEY_FILE."

    def client(self) -> Evergrant:
        return Evergrant(self.url, read_key_file(self.api_key_file) if self.api_key_file else None)


DEFAULT_OPTIONS = Options()


def _generation(_: type[int], tokens: Sequence[Token]) -> int:
    """As a lease says it. Left to itself cyclopts takes 7.6 for 8, and none for no report at all."""
    said = tokens[0].value
    if not (said.isascii() and said.isdecimal() and int(said) > 0):
        raise ValueError("a generation is a whole number from 1 on, as the lease says it")
    return int(said)


Generation = Annotated[int, Parameter(converter=_generation)]
