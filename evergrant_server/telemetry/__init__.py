"""Logs, metrics and traces of the server's processes.

Owns every name that telemetry emits (`names`), the log format, the instruments and the spans.
Reads only the standard `OTEL_…` variables. Doesn't own what is worth recording: each caller says
that in one line. Knows nothing of Temporal; `temporal_link.tracing` and `temporal_link.worker_metrics`
connect the two.
"""
