"""Metrics of what tenants share: refreshes that wait, postponed activities, connections to PostgreSQL."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace

from opentelemetry import metrics

from evergrant_server.telemetry.metrics import ACTIVITY, PROVIDER

POOL = "evergrant.pool"
STATE = "evergrant.state"
REASON = "evergrant.reason"

_meter = metrics.get_meter("evergrant")
_state = SimpleNamespace(connections=None, servers=None)

REFRESHES_WAITING = _meter.create_gauge(
    "evergrant.refresh.waiting", "{refresh}", "refreshes that this API process waits for"
)
_postponed = _meter.create_counter(
    "evergrant.activity.postponed",
    "{activity}",
    "activities that gave their slot back, because their tenant or integration had its share of the worker",
)


_postponed_refreshes = _meter.create_counter(
    "evergrant.refresh.postponed",
    "{refresh}",
    "refreshes ahead that wait for their provider's limit, or until it says that something is left",
)
LIMITS_UNSHARED = _meter.create_counter(
    "evergrant.limits.unshared",
    "{request}",
    "requests that one process counted for itself, because Redis was away",
)


def count_postponed(activity: str) -> None:
    """Count an activity that Temporal tries again later."""
    _postponed.add(1, {ACTIVITY: activity})


def count_postponed_refresh(provider: str, why: str) -> None:
    """Count a refresh that its connection's workflow tries again later."""
    _postponed_refreshes.add(1, {PROVIDER: provider, REASON: why})


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


def observe_servers(servers: Callable[[], Mapping[str, str]]) -> None:
    """Export how many PostgreSQL servers are in each state, whenever the metrics are read."""
    _state.servers = servers


def _read_servers(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    states: Mapping[str, str] = _state.servers() if _state.servers is not None else {}
    counts = Counter(states.values())
    return [metrics.Observation(counts[state], {STATE: state}) for state in _STATES if states]


_STATES = ("primary", "standby", "replaced", "away")  # of `ServerState` in the store
_meter.create_observable_gauge(
    "evergrant.store.servers",
    [_read_servers],
    "{server}",
    "PostgreSQL servers by what they were when this process last asked; none where the URL names one server",
)
