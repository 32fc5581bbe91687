"""What the converters share: items, expiries, and the conversion of rows to lines."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

Row = Mapping[str, Any]
Item = dict[str, Any]


class SkippedRow(Exception):
    """A row without a grant to import; the message gives the reason and holds no token."""


def item(**members: Any) -> Item:
    """An item with the members that have a value."""
    return {name: value for name, value in members.items() if value not in (None, "")}


def expiry(value: str | float | None) -> Item:
    """The member for an expiry in ISO 8601, epoch seconds or milliseconds, or unknown."""
    if value in (None, ""):
        return {"expires": "unknown"}
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        at = datetime.fromisoformat(value.strip().replace(" ", "T", 1))
        # PostgreSQL's `timestamp` has no zone; UTC is the convention
        return {"expires_at": (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()}
    seconds = float(value)
    if seconds > 1e11:
        seconds /= 1000
    return {"expires_at": datetime.fromtimestamp(seconds, UTC).isoformat()}


def scopes(value: str | list[str] | None) -> list[str] | None:
    """Scopes as a list, or separated by blanks or commas."""
    if not value:
        return None
    parts = value if isinstance(value, list) else value.replace(",", " ").split()
    return list(dict.fromkeys(parts))


def convert(rows: Iterable[Row], into: Callable[[Row], Item | list[Item]]) -> Iterator[str]:
    """Lines for `evergrant import`. Skipped rows are listed by number on standard error."""
    for number, row in enumerate(rows, 1):
        try:
            found = into(row)
        except SkippedRow as reason:
            print(f"row {number}: skipped: {reason}", file=sys.stderr)
            continue
        except (KeyError, TypeError, ValueError) as error:
            print(
                f"row {number}: skipped: not of the expected shape ({type(error).__name__})", file=sys.stderr
            )
            continue
        for line in found if isinstance(found, list) else [found]:
            yield json.dumps(line)
