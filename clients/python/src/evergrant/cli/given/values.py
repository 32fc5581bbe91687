"""The forms of options that several commands have: scopes, and times."""

import re
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter, Token

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
    given = _TIME.fullmatch(tokens[0].value.strip())
    if given is None:
        raise ValueError("give seconds (600), or a number with s, m, h or d (10m)")
    return float(given[1]) * _UNITS_S[given[2].lower()]


Scopes = Annotated[tuple[str, ...], Parameter(validator=_one_each)]
Seconds = Annotated[float, Parameter(converter=_seconds)]
