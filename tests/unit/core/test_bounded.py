"""Caches forget one entry at a time: emptied whole, every caller would load anew at once."""

import re
from pathlib import Path
from time import perf_counter

import pytest

from evergrant_server.access import limits
from evergrant_server.core.bounded import Bounded

ROOT = Path(__file__).parents[3]


def test_a_full_cache_forgets_what_was_set_longest_ago_and_nothing_else():
    kept: Bounded[str, int] = Bounded(3)
    for name in "abc":
        kept[name] = 1
    kept["a"] = 2
    kept["d"] = 1
    assert kept == {"c": 1, "a": 2, "d": 1}
    assert kept.pop("c") == 1
    kept["e"] = 1
    assert list(kept) == ["a", "d", "e"]


def test_forgetting_takes_no_longer_from_a_large_cache():
    def seconds(size: int) -> float:
        kept: Bounded[int, int] = Bounded(size)
        for number in range(size):
            kept[number] = number
        began = perf_counter()
        for number in range(size, size + 20_000):
            kept[number] = number
        return perf_counter() - began

    seconds(100)
    assert min(seconds(100_000) for _ in range(3)) < 10 * min(seconds(100) for _ in range(3))


def test_addresses_that_come_by_the_thousand_free_no_other_from_its_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "_MOST_KEYS", 4)
    monkeypatch.setattr(limits, "monotonic", lambda: 0.0)
    counts = limits.Gcra()
    for address in ("first", "second", "third", "greedy"):
        while counts.take("guesses", address, 3).allowed:
            pass
    counts.take("guesses", "fifth", 3)
    assert not counts.take("guesses", "greedy", 3).allowed


def test_no_cache_of_the_server_is_emptied_when_it_is_full():
    emptied = re.compile(r"if len\((self\.\w+)\) >= \w+:(?:\s+#.*)?\n\s+\1\.clear\(\)")
    left_out = {"gateway/proxy/outcomes.py", "audit/lease_ledger.py"}  # a queue; last uses, which are dates
    emptying = {
        str(path.relative_to(ROOT / "evergrant_server"))
        for path in (ROOT / "evergrant_server").rglob("*.py")
        if emptied.search(path.read_text())
    }
    assert emptying <= left_out
