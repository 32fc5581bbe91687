"""Whether a refresh that no caller waits for is sent now, or later for its provider's limit. Pure.

A provider may state what its token endpoint allows a client, and a reply may say that nothing is
left until a limit's reset (draft-ietf-httpapi-ratelimit-headers). Refreshes with a waiting caller
are never held: what is paced here leaves room for them.

Moments are seconds of a monotonic clock.
"""

from dataclasses import dataclass, replace

from evergrant_server.core.ids import ConnectionId

LONGEST_S = 300.0  # that a reply's word is believed
LONGEST_TURN_S = 3600.0  # that a refresh waits at once for its turn within a limit
_OURS = 0.75  # of a limit: callers who wait and code exchanges have the rest
_MOST_AT_ONCE = 30
_AFTER_RESET_S = 0.5  # between those that were held until a reset


@dataclass(frozen=True)
class Share:
    """What of a provider's limit refreshes ahead may use: `most` in any `span_s`."""

    most: int
    span_s: float

    @classmethod
    def of(cls, requests: int, window_s: float) -> "Share":
        """A part of the limit, cut into spans so that it is spread over a long window."""
        ours = max(int(requests * _OURS), 1)
        most = min(ours, _MOST_AT_ONCE)
        return cls(most, window_s * most / ours)


@dataclass(frozen=True)
class Pace:
    """What one process knows of an integration's limit. A new one holds nothing."""

    running: int = 0  # refreshes ahead that are admitted, and may not be in the store yet
    next_turn: float = 0.0  # of the next one that is postponed
    held_since: float = 0.0
    held_until: float = 0.0  # a reply said that nothing is left until then
    held_by: ConnectionId | None = None
    individual: bool = False  # what replies say is left is left to one connection, not to all


def wait_for_reset(pace: Pace, now: float) -> float:
    return max(pace.held_until - now, 0.0)


def wait_for_share(pace: Pace, share: Share, newest_age_s: float | None) -> float:
    """How long until the limit has room. `newest_age_s`: of the refresh that is as many back as `most`
    without those that run; None: there are not so many."""
    if pace.running >= share.most:
        return share.span_s / share.most
    return 0.0 if newest_age_s is None else max(share.span_s - newest_age_s, 0.0)


def postponed(pace: Pace, now: float, wait: float, share: Share | None, chance: float) -> tuple[Pace, float]:
    """When one comes again that has to `wait`: each at a turn of its own. Who finds none within the
    longest time comes again in the second half of it. `share`: of the limit that it waits for."""
    between = _AFTER_RESET_S if share is None else share.span_s / share.most
    longest = LONGEST_S if share is None else LONGEST_TURN_S
    turn = max(pace.next_turn, now + wait)
    if turn - now > longest:
        return pace, longest * (0.5 + chance / 2)
    return replace(pace, next_turn=turn + between), turn - now


def answered(
    pace: Pace, now: float, sent_at: float, connection: ConnectionId, nothing_left_s: float | None
) -> Pace:
    """The provider has served a request of `connection`, and may say that nothing is left.

    If it was sent after another connection heard that, the limit is one connection's own: it says
    nothing about the others, now and later.
    """
    if pace.individual:
        return pace
    if now < pace.held_until and sent_at > pace.held_since and connection != pace.held_by:
        return replace(pace, individual=True, held_until=0.0)
    if nothing_left_s is None:
        return pace
    until = now + min(nothing_left_s, LONGEST_S)
    return replace(pace, held_since=now, held_until=until, held_by=connection)
