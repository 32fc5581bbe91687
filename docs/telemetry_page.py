"""docs/telemetry.md: the tables of `evergrant_server.telemetry.names`, with their explanations."""

from collections.abc import Callable, Iterable

from evergrant_server.telemetry.log_names import ExplainedName, LogEvent, LogField
from evergrant_server.telemetry.names import ATTRIBUTES, METRICS, SPANS

Table = Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], list[str]]

_TRACES = """
## Traces

Off by default: no SDK is installed, and a span costs nothing. They are on in every process (API and
worker) that has `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) in its
environment; the protocol is `http/protobuf` (port 4318). The other standard variables work as usual:
`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_BSP_*`, `OTEL_TRACES_EXPORTER=none`, `OTEL_SDK_DISABLED=true`. A bounded queue with its own
thread sends the spans: an unavailable collector loses spans, and never delays a lease.

A caller's `traceparent` is continued; `tracestate` and `baggage` are not read. The trace id of a
request is the one in the audit log. A refresh belongs to its requester's trace:

```
POST /v1/lease                                 the API
  StartWorkflowUpdate:ensure_fresh             the API, to Temporal
    HandleUpdate:ensure_fresh                  the workflow
      StartActivity:refresh_grant              the workflow
        RunActivity:refresh_grant              the worker
          POST                                 the provider
```

A step that a workflow's timer starts belongs to the trace of its run. `RunWorkflow` ends with the run,
which may take years. No span holds a URL, a path, a header, a body or the text of an exception.
"""
_METRICS = """
## Metrics

`GET /metrics` on the API and, with `EVERGRANT_METRICS_PORT`, on a worker, in Prometheus's text format
(names with underscores and units: `evergrant_lease_count_total`, `evergrant_refresh_duration_seconds`).
A worker's page has the metrics of Temporal's SDK too (`temporal_…`). With an OTLP endpoint configured
(`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`) the same are pushed.

Each process has its own counters. With `EVERGRANT_API_WORKERS` above 1 a scrape reaches one of the API's
processes, so push over OTLP there, or run more copies of one process each. Attributes have few values,
never a tenant, id or subject, so the page needs no authentication.
"""
_LOGS = """
## Logs

One line each on standard error: text, or with `EVERGRANT_LOG_FORMAT=json` one JSON object. Libraries
that log requests log from WARNING on, at any `EVERGRANT_LOG_LEVEL`.
"""


def page(note: str, table: Table) -> str:
    spans = [(f"`{span.name}`", span.kind, span.emitted_by, _ticked(span.attributes)) for span in SPANS]
    metrics = [
        (f"`{metric.name}`", metric.kind, f"`{metric.unit}`", metric.description, _ticked(metric.attributes))
        for metric in METRICS
    ]
    return "\n".join(
        [
            note,
            "# Telemetry",
            "",
            "Traces, metrics and logs name the provider, the outcome, the code and (logs and traces) the id.",
            "None of them holds a secret; a test plants secrets and searches for them.",
            _TRACES,
            *table(("span", "kind", "where", "attributes"), spans),
            "",
            "Names with a colon, and their attributes, come from Temporal's own plugin.",
            _METRICS,
            *table(("metric", "kind", "unit", "what it counts", "attributes"), metrics),
            "",
            "## Attributes",
            "",
            *table(("attribute", "what it is"), [(f"`{name}`", text) for name, text in ATTRIBUTES.items()]),
            _LOGS,
            *table(("member", "what it is"), _explained(LogField)),
            "",
            "### Events",
            "",
            *table(("message begins with", "logged when"), _explained(LogEvent)),
            "",
        ]
    )


def _explained(names: Iterable[ExplainedName]) -> list[tuple[str, str]]:
    return [(f"`{name.value}`", name.explanation) for name in names]


def _ticked(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
