"""Logs, metrics and traces of the server's processes.

Owns the names of events, metrics and attributes, which docs/telemetry.md explains, the log format,
the instruments and the spans. Reads only the standard `OTEL_…` variables. Doesn't own what is worth
recording: each caller says that in one line. Knows nothing of Temporal; `temporal_link.telemetry`
connects the two.
"""
