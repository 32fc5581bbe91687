"""Metrics of what Envoy asks the gateway."""

from opentelemetry import metrics

from evergrant_server.telemetry.metrics import OUTCOME

_checks = metrics.get_meter("evergrant").create_histogram(
    "evergrant.envoy.check",
    "s",
    "from Envoy's question to the answer: allowed, cut, or the code of the failure",
    explicit_bucket_boundaries_advisory=[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 5, 10, 30],
)


def record_check(outcome: str, seconds: float) -> None:
    _checks.record(seconds, {OUTCOME: outcome})
