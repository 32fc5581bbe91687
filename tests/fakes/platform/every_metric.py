"""Prints what `/metrics` shows once every instrument of the product has counted.

    python -m tests.fakes.platform.every_metric

A process exports an instrument from its first value on. Instruments are named in `evergrant_server.telemetry`
alone (tests/unit/telemetry/test_names.py).
"""

import gc
import importlib
import pkgutil
import sys

from opentelemetry import metrics

from evergrant_server import telemetry
from evergrant_server.telemetry import metric_export, saturation
from evergrant_server.telemetry.plain_metrics import PlainCounter, PlainHistogram


def count_in_every_instrument() -> None:
    for instrument in gc.get_objects():
        match instrument:
            case metrics.Counter() | metrics.UpDownCounter() | PlainCounter():
                instrument.add(1)
            case metrics.Histogram() | PlainHistogram():
                instrument.record(1)
            case metrics._Gauge():  # the API has no public name for it
                instrument.set(1)
            case _:
                pass


if __name__ == "__main__":
    for module in pkgutil.iter_modules(telemetry.__path__, f"{telemetry.__name__}."):
        importlib.import_module(module.name)
    metric_export.start("evergrant")
    saturation.observe_connections(lambda: {"requests": 1})
    saturation.observe_servers(lambda: {"db-a:5432": "primary"})
    count_in_every_instrument()
    sys.stdout.buffer.write(metric_export.exposition())
