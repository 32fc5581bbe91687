"""One quota of a provider's API, and how the apps that call it share it.

In a window the provider takes so many calls. They are shared max-min fair: who has used least for its weight
is first, and what one app doesn't use the others have. An app's unused part is kept for it, less of it as the
window goes by; so is the part of one app that is still to come. Where all parts are wanted, they are even.
"""

from collections import deque
from dataclasses import dataclass

from evergrant_server.core.api_limits.reply import LONGEST_S, ReplyLimit

NEWCOMER = 2  # the weight of the app that may yet come: a normal permit's
_SLICES = 20  # of a window: how exactly it is known when a call leaves it
_MOST_PARTIES = 500
_REMEMBERED = 2  # windows without a call, until nothing is kept for an app
_SEARCHES = 24  # halvings of a window: its end to a millionth
_SAME_END_S = 5.0  # clocks and whole seconds: ends that are nearer are one


@dataclass
class AppCalls:
    """One app in one window."""

    used: int = 0
    weight: int = NEWCOMER
    seen_at: float = 0.0
    under_way: int = 0


class Quota:
    """`calls` in each window of `window_s` seconds; None: not known, and only a pause holds a call back.

    While no reply names the window's end, no `window_s` has more calls than that, wherever the provider's
    windows begin.
    """

    def __init__(self, calls: int | None, window_s: float, now: float) -> None:
        self.calls = calls
        self.window_s = min(max(window_s, 0.001), LONGEST_S)
        self.end = now + self.window_s
        self.paused_until = 0.0
        self._began = float("-inf")  # where replies name the windows' ends
        self._parties: dict[str, AppCalls] = {}
        self._sent: deque[list[float]] = deque()  # slices: when one began, and its calls
        self._told: int | None = None  # what a reply left, less what was sent since
        self._newest = -1  # of the calls whose replies were read

    def may_call(self, app: str, weight: int, now: float, ahead: int = 0) -> bool:
        """Whether the provider takes a call of this app now, without what is kept for others.

        `ahead`: calls of the same app that wait before it. The app counts from here on.
        """
        self._begin_window(now)
        party = self._party(app, now)
        party.weight = max(party.weight, weight) if party.used else weight
        return self._has_room(app, now, ahead)

    def take(self, app: str, now: float) -> None:
        """Count a call that `may_call` allowed."""
        party = self._parties[app]
        party.used += 1
        party.under_way += 1
        if self._told is not None:
            self._told -= 1
        if not self._sent or now - self._sent[-1][0] >= self.window_s / _SLICES:
            self._sent.append([now, 0])
        self._sent[-1][1] += 1

    def give_back(self, app: str) -> None:
        """Uncount a call that wasn't sent."""
        self.ended(app)
        party = self._parties.get(app)
        if party is not None and party.used:
            party.used -= 1
            if self._told is not None:
                self._told += 1
            if self._sent and self._sent[-1][1]:
                self._sent[-1][1] -= 1

    def ended(self, app: str) -> None:
        """A call of the app has its reply's head, or will have none."""
        party = self._parties.get(app)
        if party is not None and party.under_way:
            party.under_way -= 1

    def learn(self, reply: ReplyLimit, number: int, sent_at: float, now: float) -> None:
        """Believe a reply, whose call was sent then, as the process's `number`th.

        A call that was sent before this window, or before the newest that answered, says nothing about now.
        """
        self._begin_window(now)
        if number < self._newest or sent_at < self._began:
            return
        ends_at = None if reply.ends_in_s is None else now + reply.ends_in_s
        if ends_at is not None and ends_at > self.end + self.window_s / 2:
            self._renew(now)  # the provider's window has begun before ours, or is longer than was known
            self.window_s = max(self.window_s, ends_at - now)
        if reply.window_s:
            self.window_s = reply.window_s
        if ends_at is not None:
            self.end = ends_at
        if reply.calls is not None:
            self.calls = reply.calls
        if reply.remaining is None:
            return
        self._newest = number
        # replies under way may be counted already: they are taken off all the same
        self._told = max(reply.remaining - sum(party.under_way for party in self._parties.values()), 0)
        if self.calls is None or self.calls < reply.remaining:
            self.calls = reply.remaining + sum(party.used for party in self._parties.values())

    def pause(self, seconds: float, now: float) -> None:
        """Send nothing for so long."""
        self.paused_until = max(self.paused_until, now + seconds)

    def ends_elsewhere(self, reply: ReplyLimit, now: float) -> bool:
        """Whether the reply's window ends at another moment than this one, which has not ended: it is of
        another quota."""
        if reply.ends_in_s is None or self._told is None or now >= self.end:
            return False
        return abs(now + reply.ends_in_s - self.end) > max(_SAME_END_S, self.window_s / 20)

    def left(self, now: float) -> int:
        """How many calls the provider would take now."""
        self._begin_window(now)
        return self._left(now)

    def ready_at(self, app: str, now: float, ahead: int = 0) -> float:
        """When `may_call` will allow a call of the app, if no other app calls until then. `may_call` comes
        first."""
        at = max(now, self.paused_until)
        if self._has_room(app, at, ahead):
            return at
        latest = self.end - self.window_s * 1e-9
        if at < latest and self._has_room(app, latest, ahead):
            return self._first_room(app, at, latest, ahead)
        at = max(at, self.end)
        if self._told is not None or self.calls is None:
            return at
        for began, _ in self._sent:  # no reply names the end: calls leave the window one after another
            leaves_at = began + self.window_s * (1 + 1 / _SLICES)
            if leaves_at >= at and self._left(leaves_at) > ahead:
                return leaves_at
        return at if self._left(at) else at + self.window_s

    def _first_room(self, app: str, refused_at: float, allowed_at: float, ahead: int) -> float:
        """The first moment at which there is room: what is kept for others only gets less."""
        for _ in range(_SEARCHES):
            middle = (refused_at + allowed_at) / 2
            if self._has_room(app, middle, ahead):
                allowed_at = middle
            else:
                refused_at = middle
        return allowed_at

    def _has_room(self, app: str, at: float, ahead: int) -> bool:
        """Whether the calls that are left suffice for this one, and for those who come before it.

        Before it comes who has used less for its weight, up to as much as the app has used: with what is kept
        for it, and no more. So who has used least takes one wherever one is left.
        """
        if at < self.paused_until:
            return False
        if self.calls is None:
            return True
        left, party = self._left(at), self._parties[app]
        wanted = ahead + 1
        level = (party.used + ahead) / party.weight
        weights = NEWCOMER + sum(rival.weight for rival in self._parties.values())
        if left < wanted:
            return False
        still = min(max((self.end - at) / self.window_s, 0.0), 1.0)
        unit = self.calls / weights * still  # kept for a weight of one
        kept = min(unit, level) * NEWCOMER
        for name, rival in self._parties.items():
            if name != app and (below := level * rival.weight - rival.used) > 0:
                kept += min(unit * rival.weight, below)
        return left >= wanted + kept

    def _left(self, at: float) -> int:
        if self.calls is None:
            return 0
        if self._told is not None:
            return self._told
        stays_s = self.window_s * (1 + 1 / _SLICES)
        return self.calls - int(sum(calls for began, calls in self._sent if at < began + stays_s))

    def _begin_window(self, now: float) -> None:
        """Begin the window that `now` is in, if the last has ended."""
        if now >= self.end:
            self._renew(now)

    def _renew(self, now: float) -> None:
        """Begin a window: each app's part is whole again."""
        forgotten = now - _REMEMBERED * self.window_s
        self._parties = {
            name: AppCalls(0, party.weight, party.seen_at, party.under_way)
            for name, party in self._parties.items()
            if party.seen_at >= forgotten or party.under_way
        }
        passed = int(max(now - self.end, 0.0) / self.window_s) + 1
        self.end = now + self.window_s if self._told is None else self.end + passed * self.window_s
        if self._told is not None:
            self._told = self.calls  # a provider that names its windows' ends has all calls again
            self._began = min(self.end - self.window_s, now)
        while self._sent and self._sent[0][0] < now - 2 * self.window_s:
            self._sent.popleft()

    def _party(self, app: str, now: float) -> AppCalls:
        party = self._parties.get(app)
        if party is None:
            if len(self._parties) >= _MOST_PARTIES:
                del self._parties[min(self._parties, key=lambda name: self._parties[name].seen_at)]
            party = self._parties[app] = AppCalls()
        party.seen_at = now
        return party
