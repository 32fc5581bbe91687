"""The plan of a random run, drawn from its seed alone: the same seed, the same faults at the same time."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

WORKERS = 4
_EVERY_S = 2.5  # on average one fault in so many seconds
_LONG_ENOUGH_S = 240  # a run in which a stop outlasts even the longest limit of the path
KINDS = {
    "worker killed": 5,
    "worker stopped": 3,
    "answer lost": 5,
    "provider answers 500": 3,
    "provider answers 429": 3,
    "provider is slow": 2,
    "answer drips past the limit": 2,
    "answer drips and ends": 2,
    "provider closes the connection": 2,
    "real server's answer withheld": 2,
    "database sessions ended": 2,
    "database restarted": 1,
    "database away": 1,
    "Temporal restarted": 1,
    "clock jumps an hour ahead": 1,
    "clock jumps an hour back": 1,
    "key service away": 2,
    "revocation": 3,
}


@dataclass(frozen=True)
class Injection:
    at: float  # seconds from the run's start
    kind: str
    worker: int
    lasts: float


AWAY, _MINUTES_S, _MOMENT_S = "database away", 130.0, 8.0
SLOW = ("provider is slow", "answer drips past the limit")  # each outlasts half a minute


def plan(seed: int, seconds: float, *, without: Sequence[str] = ()) -> list[Injection]:
    """Every kind at least once where there is room, then by weight; none in the last quarter."""
    chance = random.Random(seed)
    kinds = [it for it in KINDS if it not in without]
    number = max(len(kinds), int(seconds * 0.75 / _EVERY_S))
    kinds += chance.choices(kinds, [KINDS[it] for it in kinds], k=number - len(kinds))
    chance.shuffle(kinds)
    longest = 75.0 if seconds >= _LONG_ENOUGH_S else min(20.0, seconds / 4)
    times = sorted(chance.uniform(0, seconds * 0.75) for _ in kinds)
    made = [
        Injection(at, kind, chance.randrange(WORKERS), chance.uniform(longest / 2, longest))
        for at, kind in zip(times, kinds, strict=True)
    ]
    return _with_one_long_outage(made) if seconds >= _LONG_ENOUGH_S else made


def _with_one_long_outage(made: list[Injection]) -> list[Injection]:
    """The database is away for minutes once; more of it, and nothing else would be seen."""
    aways = [it for it in made if it.kind == AWAY]
    return [
        replace(it, lasts=_MINUTES_S if it is aways[0] else _MOMENT_S) if it.kind == AWAY else it
        for it in made
    ]


def told(injections: list[Injection]) -> Counter[str]:
    return Counter(it.kind for it in injections)
