"""OpenTelemetry's configuration, from the standard `OTEL_…` variables."""

import os
from typing import Any

_PROTOCOL = "http/protobuf"


class BadTelemetry(ValueError):
    """An `OTEL_…` variable that can't be used; the message names it and gives the right value."""


def otlp_enabled(signal: str) -> bool:
    """Whether to export `TRACES` or `METRICS` over OTLP: only if an endpoint or exporter is configured.

    Raises BadTelemetry for a protocol that isn't supported.
    """
    if _variable("OTEL_SDK_DISABLED") == "true":
        return False
    exporter = _variable(f"OTEL_{signal}_EXPORTER")
    has_endpoint = any(_variable(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", f"{signal}_"))
    wanted = exporter == "otlp" or (has_endpoint and not exporter)
    if wanted:
        protocol = _variable(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or _variable(
            "OTEL_EXPORTER_OTLP_PROTOCOL"
        )
        if protocol not in ("", _PROTOCOL):
            raise BadTelemetry(
                f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} isn't supported; use {_PROTOCOL} (port 4318)"
            )
    return wanted


def resource(service: str) -> Any:
    """The process's resource. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    defaults = Resource({"service.name": service, "service.namespace": "evergrant"})
    return Resource.create().merge(defaults).merge(OTELResourceDetector().detect())


def _variable(variable: str) -> str:
    return os.environ.get(variable, "").strip().lower()
