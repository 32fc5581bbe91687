"""What the environment says about OpenTelemetry: the standard `OTEL_…` variables, nothing of ours."""

import os
from typing import Any

_PROTOCOL = "http/protobuf"


class BadTelemetry(ValueError):
    """A variable that can't be used; the message names it and says what would be right."""


def otlp_enabled(signal: str) -> bool:
    """Is `TRACES` or `METRICS` to be sent over OTLP? Off unless an endpoint or exporter is named.

    Raises BadTelemetry for a protocol that isn't spoken.
    """
    if _variable("OTEL_SDK_DISABLED") == "true":
        return False
    exporter = _variable(f"OTEL_{signal}_EXPORTER")
    named = any(_variable(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", f"{signal}_"))
    wanted = exporter == "otlp" or (named and not exporter)
    if wanted:
        protocol = _variable(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or _variable(
            "OTEL_EXPORTER_OTLP_PROTOCOL"
        )
        if protocol not in ("", _PROTOCOL):
            raise BadTelemetry(
                f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} isn't spoken; use {_PROTOCOL} (port 4318)"
            )
    return wanted


def resource(service: str) -> Any:
    """Who speaks. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = Resource({"service.name": service, "service.namespace": "evergrant"})
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())


def _variable(variable: str) -> str:
    return os.environ.get(variable, "").strip().lower()
