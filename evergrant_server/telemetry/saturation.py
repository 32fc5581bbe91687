"""Metrics of what tenants share: refreshes that wait, postponed activities, connections to PostgreSQL."""

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace

from opentelemetry import metrics

from evergrant_server.telemetry.metrics import ACTIVITY

POOL = "evergrant.pool"

_meter = metrics.get_meter("evergrant")
_state = SimpleNamespace(connections=None)

REFRESHES_WAITING = _meter.create_gauge(
    "evergrant.refresh.waiting", "{refresh}", "refreshes that this API process waits for"
)
_postponed = _meter.create_counter(
    "evergrant.activity.postponed",
    "{activity}",
    "activities that gave their slot back, because their tenant or integration had its share of the worker",
)


LIMITS_UNSHARED = _meter.create_counter(
    "evergrant.limits.unshared",
    "{request}",
    "requests that one process counted for itself, because Redis was away",
)


def count_postponed(activity: str) -> None:
    """Count an activity that Temporal tries again later."""
    _postponed.add(1, {ACTIVITY: activity})


def observe_connections(in_use: Callable[[], Mapping[str, int]]) -> None:
    """Export how many connections of each pool are in use, whenever the metrics are read."""
    _state.connections = in_use


def _read_connections(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    in_use: Mapping[str, int] = _state.connections() if _state.connections is not None else {}
    return [metrics.Observation(number, {POOL: pool}) for pool, number in in_use.items()]


_meter.create_observable_gauge(
    "evergrant.store.connections",
    [_read_connections],
    "{connection}",
    "connections to PostgreSQL that are in use by this process; work waits where all of a pool are",
)
