"""Metrics of authorizations at the gateways: their families of tokens, and what becomes of them."""

from opentelemetry import metrics

from evergrant_server.telemetry.metrics import OUTCOME

_families = metrics.get_meter("evergrant").create_counter(
    "evergrant.token_family.count",
    "{request}",
    "token requests of gateways' clients: begun, refreshed, or replayed, and families that a replay ended",
)


def count_family(outcome: str) -> None:
    _families.add(1, {OUTCOME: outcome})
