"""Counters and histograms of what happens ten thousand times a second: integers that are read at each export.

The SDK's own instruments compare attributes, take a lock and make an object for every value, which takes as
long as the rest of a lease's answer. Here a user keeps the cell of its attributes, and adds to it. Names,
labels and temporality are those that the SDK would export.

A cell belongs to the thread of the event loop: nothing is locked, and an export may see a value of which the
sum is there already and the count isn't.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

Attributes = tuple[tuple[str, str], ...]
SCOPE = "evergrant"
_histograms: list["PlainHistogram"] = []  # of the process


class CountCell:
    """The count of one set of attributes."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class PlainCounter:
    """A counter; with `falls`, one that also counts down."""

    def __init__(self, meter: Meter, name: str, unit: str, description: str, *, falls: bool = False) -> None:
        self._cells: dict[Attributes, CountCell] = {}
        create = meter.create_observable_up_down_counter if falls else meter.create_observable_counter
        create(name, [self._observe], unit, description)

    def cell(self, attributes: Mapping[str, str] | None = None) -> CountCell:
        """The cell of these attributes, for its user to keep."""
        key = tuple(sorted((attributes or {}).items()))
        cell = self._cells.get(key)
        return self._cells.setdefault(key, CountCell()) if cell is None else cell

    def add(self, amount: int, attributes: Mapping[str, str] | None = None) -> None:
        self.cell(attributes).count += amount

    def values(self) -> dict[Attributes, int]:
        return {key: cell.count for key, cell in list(self._cells.items())}

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, dict(key)) for key, count in self.values().items()]


class HistogramCell:
    """The values of one set of attributes: how many are in each bucket, their sum, the ends."""

    __slots__ = ("_bounds", "buckets", "least", "most", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum: float = 0
        self.least, self.most = float("inf"), float("-inf")

    def record(self, value: float) -> None:
        self.buckets[bisect_left(self._bounds, value)] += 1
        self.sum += value
        if value < self.least:
            self.least = value
        if value > self.most:
            self.most = value


class PlainHistogram:
    """A histogram. OpenTelemetry has no observable one: a reader made by `reading` exports it."""

    def __init__(self, name: str, unit: str, description: str, bounds: Sequence[float]) -> None:
        self.name, self.unit, self.description, self.bounds = name, unit, description, bounds
        self.began = self._read_at = time.time_ns()
        self._cells: dict[Attributes, HistogramCell] = {}
        _histograms.append(self)

    def cell(self, attributes: Mapping[str, str] | None = None) -> HistogramCell:
        """The cell of these attributes, for its user to keep."""
        key = tuple(sorted((attributes or {}).items()))
        cell = self._cells.get(key)
        return self._cells.setdefault(key, HistogramCell(self.bounds)) if cell is None else cell

    def record(self, value: float, attributes: Mapping[str, str] | None = None) -> None:
        self.cell(attributes).record(value)

    def values(self) -> dict[Attributes, HistogramCell]:
        """Copies of the cells."""
        copies: dict[Attributes, HistogramCell] = {}
        for key, cell in list(self._cells.items()):
            copy = copies[key] = HistogramCell(self.bounds)
            copy.buckets, copy.sum = list(cell.buckets), cell.sum
            copy.least, copy.most = cell.least, cell.most
        return copies

    def collected(self, before: dict[Attributes, HistogramCell] | None) -> Any:
        """The SDK's metric. `before` has what a reader of changes has read, and is brought up to date."""
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality,
            Histogram,
            HistogramDataPoint,
            Metric,
        )

        points: list[HistogramDataPoint] = []
        now, nothing = time.time_ns(), HistogramCell(self.bounds)
        for key, cell in self.values().items():
            last = nothing if before is None else before.get(key, nothing)
            buckets = [count - known for count, known in zip(cell.buckets, last.buckets, strict=True)]
            if before is None:
                facts = (cell.sum, buckets, self.bounds, cell.least, cell.most)
                points.append(HistogramDataPoint(dict(key), self.began, now, sum(buckets), *facts))
            elif any(buckets):
                ends: Any = (None, None)  # the least and the most of the changes aren't known
                facts = (cell.sum - last.sum, buckets, self.bounds, *ends)
                points.append(HistogramDataPoint(dict(key), self._read_at, now, sum(buckets), *facts))
                before[key] = cell
        if before is not None:
            self._read_at = now
        changes, sums = AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE
        data = Histogram(points, sums if before is None else changes)
        return Metric(self.name, self.description, self.unit, data)


def reading(kind: type[Any]) -> type[Any]:
    """The class of readers `kind`, with the plain histograms beside what the SDK has collected."""

    class Reader(kind):
        def _receive_metrics(self, metrics_data: Any, timeout_millis: float = 10_000, **options: Any) -> None:
            metrics = [histogram.collected(self._before(histogram)) for histogram in _histograms]
            metrics = [metric for metric in metrics if metric.data.data_points]
            super()._receive_metrics(_joined(metrics_data, metrics), timeout_millis, **options)

        def _before(self, histogram: PlainHistogram) -> dict[Attributes, HistogramCell] | None:
            """What was exported of it, for an exporter that wants changes alone; None for any other."""
            from opentelemetry.sdk.metrics import Histogram
            from opentelemetry.sdk.metrics.export import AggregationTemporality

            preferred = (self._preferred_temporality or {}).get(Histogram)
            if preferred is not AggregationTemporality.DELTA:
                return None
            return self.__dict__.setdefault("_exported", {}).setdefault(histogram.name, {})

    Reader.__name__ = kind.__name__
    return Reader


def _joined(collected: Any, metrics: list[Any]) -> Any:
    """The collected data with `metrics` in the scope of Evergrant's others."""
    resource = collected.resource_metrics[0]
    scopes = [
        replace(scope, metrics=[*scope.metrics, *metrics]) if scope.scope.name == SCOPE else scope
        for scope in resource.scope_metrics
    ]
    return replace(collected, resource_metrics=[replace(resource, scope_metrics=scopes)])
