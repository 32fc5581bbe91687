"""The picture of a run: bars for each side of each measurement, readable on light and dark pages (SVG)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from bench.gateway import CallRate
from bench.leases import LeaseRate
from bench.refreshes import CALLERS, RefreshRate

_WIDTH, _LEFT, _RIGHT = 880, 250, 120  # of the picture, of the labels, of the figures behind a bar
_BAR, _GAP, _BETWEEN = 18, 6, 16  # a bar, the room below it, and between groups
_STYLE = """
  .page { fill: #ffffff } .text { fill: #1f2937 } .small { fill: #4b5563 }
  .ours { fill: #059669 } .theirs { fill: #9ca3af } .other { fill: #d97706 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #111827 } .text { fill: #f3f4f6 } .small { fill: #9ca3af }
    .ours { fill: #34d399 } .theirs { fill: #6b7280 } .other { fill: #fbbf24 }
  }
"""


@dataclass(frozen=True)
class Bar:
    """`side`: ours, theirs (what it is compared with) or other (another product)."""

    label: str
    value: float
    figure: str
    side: str = "theirs"


@dataclass(frozen=True)
class Panel:
    title: str
    groups: Sequence[Sequence[Bar]]


def draw(
    rates: Iterable[LeaseRate], refreshes: RefreshRate | None, calls: Sequence[CallRate], note: str
) -> str:
    """`note`: where and how it was measured."""
    panels = _lease_panels(list(rates))
    if refreshes is not None:
        panels.append(_refresh_panel(refreshes))
    if calls:
        panels.append(_call_panel(calls))
    body, top = list[str](), 52
    for panel in panels:
        top = _panel(body, panel, top)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + 16}" role="img" '
        'font-family="system-ui, -apple-system, \'Segoe UI\', sans-serif" font-size="14" '
        'aria-labelledby="title desc">'
    )
    described = "; ".join(
        f"{panel.title}: " + ", ".join(f"{bar.label} {bar.figure}" for group in panel.groups for bar in group)
        for panel in panels
    )
    lines = [
        head,
        '<title id="title">What Evergrant costs, measured in one run</title>',
        f'<desc id="desc">{escape(described)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{top + 16}" rx="12"/>',
        f'<text class="small" x="24" y="32" font-size="13">{escape(note)}</text>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _lease_panels(rates: list[LeaseRate]) -> list[Panel]:
    """A panel for each number of clients: each store beside the bare route and OpenBao of its own rounds."""
    panels: list[Panel] = []
    for clients in dict.fromkeys(rate.clients for rate in rates):
        groups: list[list[Bar]] = []
        for rate in (rate for rate in rates if rate.clients == clients):
            lease = rate.lease.per_second
            group = [
                Bar(f"a lease, {rate.store}", lease, f"{lease:,.0f} a second", "ours"),
                _compared("a bare FastAPI POST", rate.bare.per_second, lease),
            ]
            if rate.openbao is not None:
                group.append(_compared("OpenBao, a secret read", rate.openbao.per_second, lease, "other"))
            groups.append(group)
        panels.append(Panel(f"Leases, {clients} clients", groups))
    return panels


def _refresh_panel(row: RefreshRate) -> Panel:
    ours = Bar("a refresh", row.refreshes, f"{row.refreshes:.0f} a second", "ours")
    return Panel(
        f"Refreshes, {CALLERS} callers", [[ours, _compared("an empty activity", row.ceiling, row.refreshes)]]
    )


def _call_panel(rows: Sequence[CallRate]) -> Panel:
    names = {"proxy": "an API's call", "mcp": "a call of an MCP tool"}
    bars = [
        Bar(
            f"{names.get(row.kind, row.kind)}, {row.clients} client{'s' * (row.clients > 1)}",
            row.added_ms,
            f"{row.added_ms:.2f} ms",
            "ours",
        )
        for row in rows
    ]
    return Panel("What the gateway adds to a call (median; shorter is better)", [bars])


def _compared(label: str, value: float, ours: float, side: str = "theirs") -> Bar:
    return Bar(label, value, f"{value:,.0f} (Evergrant: {ours / value:.2f} of it)", side)


def _panel(body: list[str], panel: Panel, top: int) -> int:
    """Append the panel below `top`; returns where it ends."""
    body.append(
        f'<text class="text" x="24" y="{top + 18}" font-size="15" font-weight="600">'
        f"{escape(panel.title)}</text>"
    )
    top += 34
    most = max((bar.value for group in panel.groups for bar in group), default=1.0)
    room = _WIDTH - _LEFT - _RIGHT - 100
    for group in panel.groups:
        for bar in group:
            width, line = max(bar.value / most * room, 2), top + _BAR - 5
            shape = f'x="{_LEFT}" y="{top}" width="{width:.0f}" height="{_BAR}" rx="3"'
            behind = f'x="{_LEFT + width + 8:.0f}" y="{line}" font-size="13"'
            body += [
                f'<text class="text" x="{_LEFT - 12}" y="{line}" text-anchor="end">'
                f"{escape(bar.label)}</text>",
                f'<rect class="{bar.side}" {shape}/>',
                f'<text class="small" {behind}>{escape(bar.figure)}</text>',
            ]
            top += _BAR + _GAP
        top += _BETWEEN - _GAP
    return top + 10
