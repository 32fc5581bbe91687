"""The quotas that one process knows, and which of them a call has to fit.

A definition's quotas count a connection's calls, or all of an integration's. What replies name beyond them is
kept for the connection: by the limit's name for those paths that named it, else by its size, for all paths,
until two paths name different ends of one window.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict, Field

from evergrant_server.core.api_limits.reply import LONGEST_S, ReplyLimit, ReplyLimits
from evergrant_server.core.api_limits.shared_quota import Quota
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.model import CheckedModel

_MOST_QUOTAS = 50_000
_MOST_SEGMENTS = 4  # of a path
_ID = re.compile(r"[^/]*[0-9][^/]*|[^/]{25,}")  # a segment with a digit, or a long one: rather than a word
_SAME_WINDOW = 0.1  # of a window: how much another length may differ

_Key = tuple[str, ...]


class DocumentedQuota(CheckedModel):
    """How many requests to its API a provider's documentation allows in a window: of each connection, or of
    all of an integration together."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    requests: int = Field(ge=1, le=10_000_000)
    window_s: float = Field(gt=0, le=LONGEST_S)
    per: Literal["connection", "integration"]


@dataclass(frozen=True)
class LimitedCall:
    """A call that an app is about to send. `path` is what `path_shape` makes of it."""

    app: str
    weight: int
    connection: str
    integration: str
    path: str
    documented: tuple[DocumentedQuota, ...] = ()


@dataclass
class CountedCall:
    """A call that was counted. `number` is its place in the order of this process's calls."""

    call: LimitedCall
    number: int
    sent_at: float
    quotas: tuple[Quota, ...]
    is_open: bool = field(default=True)


class ApiLimits:
    """The quotas of one process. Each of `processes` takes its part of a documented one."""

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes
        self._quotas = Bounded[_Key, Quota](_MOST_QUOTAS)
        self._named_by = Bounded[_Key, tuple[_Key, ...]](_MOST_QUOTAS)  # by a path, and by any path
        self._by_path = Bounded[_Key, bool](_MOST_QUOTAS)  # limits of a connection that each path has apart
        self._calls = 0

    def take(self, call: LimitedCall, now: float, ahead: int = 0) -> CountedCall | None:
        """Count a call in each of its quotas; None: one of them has no room for it."""
        quotas = tuple(self._quotas_of(call, now))
        rooms = [quota.may_call(call.app, call.weight, now, ahead) for quota in quotas]
        if not all(rooms):
            return None
        for quota in quotas:
            quota.take(call.app, now)
        self._calls += 1
        return CountedCall(call, self._calls, now, quotas)

    def ready_at(self, call: LimitedCall, now: float, ahead: int = 0) -> float:
        """When `take`, which refused it, would count the call."""
        return max(
            (quota.ready_at(call.app, now, ahead) for quota in self._quotas_of(call, now)), default=now
        )

    def give_back(self, counted: CountedCall) -> None:
        """The call isn't sent."""
        if counted.is_open:
            counted.is_open = False
            for quota in counted.quotas:
                quota.give_back(counted.call.app)

    def ended(self, counted: CountedCall) -> None:
        """The call has no reply."""
        if counted.is_open:
            counted.is_open = False
            for quota in counted.quotas:
                quota.ended(counted.call.app)

    def answered(self, counted: CountedCall, reply: ReplyLimits, now: float) -> None:
        """Learn from the head of a call's reply."""
        self.ended(counted)
        call = counted.call
        keys = [self._learn(counted, limit, now) for limit in reply.limits]
        learned = tuple(key for key in keys if key is not None)
        if learned and self._named_by.get((call.connection, call.path)) != learned:
            self._named_by[call.connection, call.path] = learned
        if reply.pause_s and not any(limit.says_when for limit in reply.limits):
            key = (call.connection, "pause", call.path)
            self._quota(key, None, reply.pause_s, now).pause(reply.pause_s, now)

    def _learn(self, counted: CountedCall, limit: ReplyLimit, now: float) -> _Key | None:
        """The key of the quota that the limit is of, unless it is a documented one."""
        call = counted.call
        documented = _documented(call.documented, limit)
        if documented is not None:
            self._quota(*self._documented(call, documented), now).learn(
                limit, counted.number, counted.sent_at, now
            )
            return None
        key: _Key = (call.connection, "limit", limit.name or str(limit.calls))
        window_s = limit.window_s or limit.ends_in_s
        if window_s is None:
            return None  # nothing says when there is more
        shared = self._quotas.get(key)
        of_paths = key in self._by_path
        if not of_paths and shared is not None and shared.ends_elsewhere(limit, now):
            of_paths = self._by_path[key] = True
            self._quotas.pop(key)
            self._named_by.pop((call.connection,), None)
        if of_paths:
            key = (*key, call.path)
        elif not limit.name:
            self._note_unnamed(call.connection, key)
        quota = self._quotas.get(key)
        if quota is None:
            quota = self._quota(key, limit.calls, window_s, now)
            quota.may_call(call.app, call.weight, now)
            quota.take(call.app, now)  # the reply that it is known from
            quota.ended(call.app)
        quota.learn(limit, counted.number, counted.sent_at, now)
        return key

    def _note_unnamed(self, connection: str, key: _Key) -> None:
        """Take the limit for one of all paths, unless replies name several sizes: then a path has those that
        its own replies name."""
        known = self._named_by.get((connection,))
        if known is None:
            self._named_by[(connection,)] = (key,)
        elif known and known != (key,):
            self._named_by[(connection,)] = ()

    def _quotas_of(self, call: LimitedCall, now: float) -> Iterator[Quota]:
        for documented in call.documented:
            yield self._quota(*self._documented(call, documented), now)
        keys = self._named_by.get((call.connection, call.path)) or self._named_by.get((call.connection,), ())
        for key in (*keys, (call.connection, "pause", call.path)):
            quota = self._quotas.get(key)
            if quota is not None:
                yield quota

    def _documented(self, call: LimitedCall, documented: DocumentedQuota) -> tuple[_Key, int, float]:
        scope = call.connection if documented.per == "connection" else call.integration
        key = (scope, "documented", f"{documented.requests}/{documented.window_s}")
        return key, max(documented.requests // self._processes, 1), documented.window_s

    def _quota(self, key: _Key, calls: int | None, window_s: float, now: float) -> Quota:
        quota = self._quotas.get(key)
        if quota is None:
            quota = self._quotas[key] = Quota(calls, window_s, now)
        return quota


def path_shape(method: str, path: str) -> str:
    """Method and path with `*` for ids: calls of one shape have the limits of one route."""
    words = "/".join(path.strip("/").split("/", _MOST_SEGMENTS)[:_MOST_SEGMENTS])
    return f"{method} {_ID.sub('*', words)}"


def _documented(quotas: Sequence[DocumentedQuota], limit: ReplyLimit) -> DocumentedQuota | None:
    """The documented quota that a reply's limit is: of the same window, or of the same size where it names no
    window; else the only one, if the limit may be that of another plan."""
    for quota in quotas:
        if limit.window_s is None and limit.calls == quota.requests:
            return quota
        if limit.window_s is not None and abs(limit.window_s / quota.window_s - 1) <= _SAME_WINDOW:
            return quota
    if len(quotas) != 1 or limit.window_s is not None:
        return None
    may_be = not limit.name or (limit.calls or 0) > quotas[0].requests
    fits = (limit.ends_in_s or 0) <= quotas[0].window_s * (1 + _SAME_WINDOW)
    return quotas[0] if may_be and fits else None
