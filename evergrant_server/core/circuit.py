"""When a provider that fails is left alone: the circuit of one integration's token endpoint. Pure.

Closed, everybody may send. After failures in a row it opens: nobody may, but for one probe at
a time, and the gaps between probes grow with the outage. A probe that is answered lets the
others follow at a rate that doubles, so that the end of an outage is no stampede.

Moments are seconds of a clock that only goes forward: no clock jump opens or closes anything.
"""

from dataclasses import dataclass, replace

from evergrant_server.core.errors import Code
from evergrant_server.core.ids import ConnectionId


@dataclass(frozen=True)
class CircuitRules:
    """The numbers. Seconds; a `threshold` of 0 turns the circuit off."""

    threshold: int = 5  # failures in a row, over all connections of the integration
    limited: int = 3  # connections that are rate limited in a row; fewer may each have a limit of their own
    first_gap: float = 5.0
    gap_growth: float = 1.5  # so a gap is about a third of the outage so far
    longest_gap: float = 600.0
    probe_limit: float = 120.0  # a probe that isn't heard of after this is taken for lost
    first_rate: float = 2.0  # sends a second, once a probe was answered
    doubling: float = 10.0
    recovery: float = 60.0  # after this many seconds without a failure it is closed
    patience: float = 2.0  # waits this long for a turn; who would wait longer is sent away


@dataclass(frozen=True)
class Circuit:
    """What is known of one endpoint. A new one is closed."""

    failures: int = 0  # in a row
    reason: Code | None = None  # what the last failure was
    opened: bool = False
    probes: int = 0  # probes that failed since it opened
    next_probe: float = 0.0
    probing_since: float | None = None
    recovering_since: float | None = None
    next_turn: float = 0.0
    limited: tuple[ConnectionId | None, ...] = ()  # who was rate limited since the last answer


@dataclass(frozen=True)
class Admission:
    """`go_in` seconds from now the request may be sent; None: not at all, ask after `retry_after`."""

    go_in: float | None
    retry_after: float = 0.0
    probe: bool = False


_GO = Admission(0.0)


def admit(it: Circuit, now: float, rules: CircuitRules, share: float) -> tuple[Circuit, Admission]:
    """May one more be sent? `share` in [0, 1) spreads those who are sent away."""
    if it.opened:
        return _probe(it, now, rules, share)
    if it.recovering_since is None:
        return it, _GO
    since = now - it.recovering_since
    if since >= rules.recovery:
        return Circuit(), _GO
    turn = max(it.next_turn, now)
    if turn - now > rules.patience:
        return it, Admission(None, turn - now + share * (rules.recovery - since) / 2)
    rate = rules.first_rate * 2 ** (since / rules.doubling)
    return replace(it, next_turn=turn + 1 / rate), Admission(turn - now)


def _probe(it: Circuit, now: float, rules: CircuitRules, share: float) -> tuple[Circuit, Admission]:
    out = it.probing_since is not None and now - it.probing_since < rules.probe_limit
    if out or now < it.next_probe:
        wait = max(it.next_probe - now, rules.first_gap)
        return it, Admission(None, wait * (1 + share / 4))
    return replace(it, probing_since=now), Admission(0.0, probe=True)


def answered(it: Circuit, now: float, rules: CircuitRules) -> Circuit:
    """The provider served a request, be it with a refusal: it is there."""
    if it.opened:
        return Circuit(recovering_since=now, next_turn=now + 1 / rules.first_rate)
    if it.recovering_since is not None and now - it.recovering_since < rules.recovery:
        return replace(it, failures=0, limited=())
    return Circuit()


def failed(
    it: Circuit,
    now: float,
    rules: CircuitRules,
    code: Code,
    retry_after: float | None,
    *,
    probe: bool,
    connection: ConnectionId | None = None,
) -> Circuit:
    """No answer came, or one that says that nobody is served.

    A rate limit may be one connection's own, and its schedule keeps to it: only when several
    are limited in a row is it the provider's word to everybody.
    """
    if not rules.threshold or (it.opened and not probe):  # sent before it opened: it tells nothing new
        return it
    one = code is Code.PROVIDER_RATE_LIMITED
    it = replace(it, limited=_limited(it, rules, connection)) if one else it
    everybody = not one or len(it.limited) >= rules.limited
    told = min(retry_after or 0.0, rules.longest_gap) if everybody else 0.0
    if it.opened:
        gap = min(rules.first_gap * rules.gap_growth ** min(it.probes + 1, 50), rules.longest_gap)
        probes = it.probes + 1
        return replace(it, reason=code, probes=probes, next_probe=now + max(gap, told), probing_since=None)
    if not everybody:
        return it
    failures = it.failures if one else it.failures + 1
    if failures >= rules.threshold or one or it.recovering_since is not None:
        next_probe = now + (told or rules.first_gap)
        return Circuit(failures, code, opened=True, next_probe=next_probe, limited=it.limited)
    return replace(it, failures=failures, reason=code)


def _limited(
    it: Circuit, rules: CircuitRules, connection: ConnectionId | None
) -> tuple[ConnectionId | None, ...]:
    """Each counts once, and no more are remembered than matter."""
    return tuple(dict.fromkeys((*it.limited, connection)))[: rules.limited]


def unheard(it: Circuit, *, probe: bool) -> Circuit:
    """What was let through ended without a word from the provider: the next one may probe."""
    return replace(it, probing_since=None) if probe and it.opened else it
