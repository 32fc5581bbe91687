"""Renders the console's pages. Every value is escaped; times are UTC, with how long ago beside them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evergrant_server.console.next_steps import state_words, step_of
from evergrant_server.core.errors import FAILURES

_DIRECTORY = Path(__file__).parent
_HTMX = "htmx-4.0.1.min.js"
_JAVASCRIPT = "text/javascript; charset=utf-8"
STATIC = {
    name: ((_DIRECTORY / "static" / name).read_bytes(), kind)
    for name, kind in (
        ("console.css", "text/css; charset=utf-8"),
        ("console.js", _JAVASCRIPT),
        (_HTMX, _JAVASCRIPT),
    )
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class Visitor(NamedTuple):
    """Who is there, for the head of each page. `audits`: sees what is the whole tenant's."""

    name: str
    kind: str
    tenant: str
    audits: bool
    csrf: str
    step_up: str | None


class ConsolePages:
    """The console's templates, compiled once."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(_DIRECTORY / "templates"),
            autoescape=True,  # regardless of the file's extension
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"moment": moment, "ago": ago, "plain": plain}
        self._templates.globals |= {
            "htmx": _HTMX,
            "state_words": state_words,
            "step_of": step_of,
            "failures": FAILURES,
        }

    def render(self, template: str, *, title: str, **values: Any) -> str:
        return self._templates.get_template(f"console/{template}").render(title=title, **values)


def moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(at: datetime, now: datetime) -> str:
    """How far a moment is from now, in one unit: `5 min ago`, `in 2 h`."""
    seconds = (now - at).total_seconds()
    size = abs(seconds)
    if size < _MINUTE:
        text = f"{size:.0f} s"
    elif size < _HOUR:
        text = f"{size // _MINUTE:.0f} min"
    elif size < _DAY:
        text = f"{size // _HOUR:.0f} h"
    else:
        text = f"{size // _DAY:.0f} d"
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def plain(value: object) -> str:
    """A value of a record's detail as text."""
    if isinstance(value, list | tuple):
        return " ".join(str(it) for it in value) or "none"  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]  # JSON's values
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
