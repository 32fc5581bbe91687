"""Metrics of calls to providers' APIs through the gateway."""

from opentelemetry import metrics

from evergrant_server.telemetry.metrics import OUTCOME, PROVIDER

_meter = metrics.get_meter("evergrant")

_calls = _meter.create_counter(
    "evergrant.proxy.count",
    "{call}",
    "calls through the gateway: answered, cut, or the code of the failure",
)
_waits = _meter.create_histogram(
    "evergrant.proxy.wait",
    "s",
    "from sending a request to a provider's API to the head of its response",
    explicit_bucket_boundaries_advisory=[0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
)
_open = _meter.create_up_down_counter("evergrant.proxy.open", "{call}", "calls that are open now")
_echoes = _meter.create_counter(
    "evergrant.proxy.echo", "{response}", "responses out of which an injected credential was cut"
)
_tools = _meter.create_counter(
    "evergrant.mcp.tool_count",
    "{call}",
    "calls of Evergrant's MCP tools: answered, failed, or asked a person",
)


def count_call(outcome: str, provider: str) -> None:
    _calls.add(1, {OUTCOME: outcome, PROVIDER: provider})


def record_wait(seconds: float, provider: str) -> None:
    _waits.record(seconds, {PROVIDER: provider})


def note_open(change: int) -> None:
    _open.add(change)


def count_echo(provider: str) -> None:
    _echoes.add(1, {PROVIDER: provider})


def count_tool(tool: str, outcome: str) -> None:
    _tools.add(1, {"evergrant.tool": tool, OUTCOME: outcome})
