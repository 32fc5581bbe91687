"""What the environment says about OpenTelemetry: the standard `OTEL_…` variables, nothing of ours."""

import os
from typing import Any

_PROTOCOL = "http/protobuf"


class BadTelemetry(ValueError):
    """A variable that can't be used; the message names it and says what would be right."""


def otlp_wanted(signal: str) -> bool:
    """Is `TRACES` or `METRICS` to be sent over OTLP? Off unless an endpoint or exporter is named.

    Raises BadTelemetry for a protocol that isn't spoken.
    """
    if _said("OTEL_SDK_DISABLED") == "true":
        return False
    exporter = _said(f"OTEL_{signal}_EXPORTER")
    named = any(_said(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", f"{signal}_"))
    wanted = exporter == "otlp" or (named and not exporter)
    if wanted:
        protocol = _said(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or _said("OTEL_EXPORTER_OTLP_PROTOCOL")
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


def _said(variable: str) -> str:
    return os.environ.get(variable, "").strip().lower()
