"""Plots: what a bar is, what is said of them, and that no text becomes markup."""

import re
from datetime import UTC, datetime, timedelta

from evergrant_server.console.plots import Bars, bar_plot

HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 18, 12, tzinfo=UTC)


def plot(*stack: Bars, hours: int = 3) -> str:
    moments = [NOON + number * HOUR for number in range(hours)]
    return str(bar_plot("leases", "Leases & more", moments, stack))


def test_bars_stand_on_the_base_one_kind_above_another():
    drawn = plot(Bars("worked", "good", [10, 0, 40]), Bars("failed", "bad", [10, 0, 10]))
    bars = re.findall(
        r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', drawn
    )
    assert [look for look, *_ in bars] == ["good", "bad", "good", "bad"], "no bar of nothing"
    lower, upper = bars[0], bars[1]
    assert float(lower[2]) + float(lower[3]) == 96
    assert float(upper[2]) + float(upper[3]) == float(lower[2])
    assert float(bars[2][3]) == 64, "40 of 50, the round number above the highest"


def test_who_does_not_see_it_is_told_the_sums_and_since_when():
    drawn = plot(Bars("leases", "good", [1200, 0, 34]))
    assert 'role="img" aria-labelledby="leases-title leases-desc"' in drawn
    assert '<title id="leases-title">Leases &amp; more</title>' in drawn
    assert "3 hours since 2026-03-18 12:00 UTC: 1,234 leases." in drawn
    assert "style=" not in drawn
    assert "<script" not in plot(Bars("<script>", "good", [1, 1, 1]))


def test_nothing_and_one_moment_are_drawn_too():
    assert "Nothing is counted yet." in plot(Bars("leases", "good", []), hours=0)
    assert plot(Bars("leases", "good", [0]), hours=1).count("<text") == 2
