"""Small plots, drawn here as SVG: no script, and no colour of their own but the style sheet's classes.

A plot has a title and a description for who doesn't see it; its page has the numbers in a table beside it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

from evergrant_server.console.times import counted

_WIDTH, _HEIGHT = 360, 118
_LEFT, _TOP, _BASE = 4, 16, 96  # where the bars begin, the highest ends, and all stand
_STEPS = (1, 2, 5)


class Bars(NamedTuple):
    """The values of one kind, a class of the style sheet for their colour."""

    name: str
    look: str
    values: Sequence[int]


def bar_plot(name: str, title: str, moments: Sequence[datetime], stack: Sequence[Bars]) -> str:
    """Bars of each moment, one kind above another; every text is escaped. `name` is the id of its title."""
    totals = [sum(values) for values in zip(*(bars.values for bars in stack), strict=True)]
    top = _ceiling(max(totals, default=0))
    parts = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-labelledby="{escape(name)}-title {escape(name)}-desc">',
        f'<title id="{escape(name)}-title">{escape(title)}</title>',
        f'<desc id="{escape(name)}-desc">{escape(_description(moments, stack))}</desc>',
        _scale(top),
        *_bars(totals, stack, top),
        *_times(moments),
        "</svg>",
    ]
    return "".join(parts)


def _ceiling(most: int) -> int:
    """The least round number that the highest bar fits under."""
    size = 1
    while True:
        for step in _STEPS:
            if step * size >= most:
                return step * size
        size *= 10


def _description(moments: Sequence[datetime], stack: Sequence[Bars]) -> str:
    if not moments:
        return "Nothing is counted yet."
    sums = ", ".join(f"{sum(bars.values):,} {bars.name}" for bars in stack)
    hours = counted(len(moments), "hour")
    return f"{hours} since {moments[0].astimezone(UTC):%Y-%m-%d %H:%M} UTC: {sums}."


def _scale(top: int) -> str:
    lines = "".join(
        f'<line class="rule" x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _LEFT}" y2="{y}"/>' for y in (_TOP, _BASE)
    )
    return f'{lines}<text class="tick" x="{_LEFT}" y="{_TOP - 4}">{top:,}</text>'


def _bars(totals: Sequence[int], stack: Sequence[Bars], top: int) -> list[str]:
    """From the base up, in the order of the stack."""
    width = (_WIDTH - 2 * _LEFT) / max(len(totals), 1)
    drawn: list[str] = []
    for place in range(len(totals)):
        x, y = _LEFT + place * width, float(_BASE)
        for bars in stack:
            height = (_BASE - _TOP) * bars.values[place] / top
            if not height:
                continue
            y -= height
            drawn.append(
                f'<rect class="{escape(bars.look)}" x="{x + width * 0.1:.2f}" y="{y:.2f}" '
                f'width="{width * 0.8:.2f}" height="{height:.2f}"/>'
            )
    return drawn


def _times(moments: Sequence[datetime]) -> list[str]:
    """The first, the middle and the last moment."""
    if not moments:
        return []
    width, last = (_WIDTH - 2 * _LEFT) / len(moments), len(moments) - 1
    places = {0: "start", last // 2: "middle", last: "end"} if last > 1 else {0: "start"}
    drawn: list[str] = []
    for place, anchor in places.items():
        x = {"start": _LEFT, "middle": _LEFT + (place + 0.5) * width, "end": _WIDTH - _LEFT}[anchor]
        text = f"{moments[place].astimezone(UTC):%d %b %H:%M}"
        drawn.append(
            f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{escape(text)}</text>'
        )
    return drawn
