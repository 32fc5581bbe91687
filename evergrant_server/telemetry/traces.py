"""Traces: one lease followed from the caller's request to the provider's answer.

Off unless the standard `OTEL_…` variables ask for it. Spans wait in a bounded queue that a thread
empties, so that no request waits for a collector. Of a caller's headers, only the ids in
`traceparent` are used: no tracestate, no baggage. The configuration at the end serves metrics too.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import httpx2
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evergrant_server.core.messages.base import RequestContext

HTTP_METHOD = "http.request.method"
HTTP_STATUS = "http.response.status_code"
HTTP_ROUTE = "http.route"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"
CODE = "evergrant.code"

# W3C Trace Context section 3.2.2
_TRACEPARENT = re.compile(r"^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z")
_TRACED = re.compile(r"[0-9a-f]{32} [0-9a-f]{16}\Z")  # trace and span
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_OTHER_METHOD = "_OTHER"  # what the conventions prescribe for an unknown method

_tracer = trace.get_tracer("evergrant")  # a no-op until `start` sets a provider

_state = SimpleNamespace(provider=None)  # the SDK's provider can be set only once a process

_PROTOCOL = "http/protobuf"


def start(service: str, provider_for: Callable[[Any], Any]) -> bool:
    """Start to trace if the environment asks for it. Returns whether this process traces.

    `provider_for` makes the SDK's tracer provider for a resource. Raises BadTelemetry.
    """
    if _state.provider is None and otlp_enabled("TRACES"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = provider_for(resource(service))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
        _state.provider = provider
    return _state.provider is not None


def is_enabled() -> bool:
    return _state.provider is not None


def flush(limit_ms: int = 2000) -> None:
    """Export what is buffered, within the limit."""
    if _state.provider is not None:
        with suppress(Exception):  # the last spans are not worth a failed shutdown
            _state.provider.force_flush(limit_ms)


# --- across processes ---------------------------------------------------------------------


def current_ids() -> tuple[str, str]:
    """The ids of the current trace and span in hex; ("", "") when none is sampled."""
    span = trace.get_current_span().get_span_context()
    if not (span.is_valid and span.trace_flags.sampled):
        return "", ""
    return trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id)


@contextmanager
def continue_trace(request: RequestContext | None) -> Iterator[None]:
    """Run the block in the trace of the original request, if that was traced.

    Ids that aren't of the form of W3C Trace Context are ignored: a signal may hold any text.
    """
    if request is None or not _TRACED.match(f"{request.trace_id} {request.span_id}") or not is_enabled():
        yield
        return
    parent = _remote_span(request.trace_id, request.span_id, TraceFlags.SAMPLED)
    token = context.attach(trace.set_span_in_context(parent))
    try:
        yield
    finally:
        context.detach(token)


def _remote_span(trace_id: str, span_id: str, flags: int) -> NonRecordingSpan:
    return NonRecordingSpan(SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(flags)))


# --- HTTP ---------------------------------------------------------------------------------


class TracingMiddleware:
    """ASGI middleware: a span around every request, in the caller's trace if it names one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = _method_name(scope["method"])
        with _tracer.start_as_current_span(
            method,
            _parent_context(scope),
            SpanKind.SERVER,
            {HTTP_METHOD: method},
            record_exception=False,  # its text may quote a secret
            set_status_on_exception=False,
        ) as span:

            async def send_traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _set_response_attributes(span, method, scope, message["status"])
                await send(message)

            await self._app(scope, receive, send_traced)


def _parent_context(scope: Scope) -> context.Context | None:
    for name, value in scope["headers"]:
        if name == b"traceparent" and (match := _TRACEPARENT.match(value.decode("latin-1").strip())):
            remote = _remote_span(match[1], match[2], int(match[3], 16) & TraceFlags.SAMPLED)
            if remote.get_span_context().is_valid:
                return trace.set_span_in_context(remote)
    return None


def _set_response_attributes(span: trace.Span, method: str, scope: Scope, status: int) -> None:
    route = getattr(scope.get("route"), "path", None)
    if route is not None:  # the template; the path itself may hold a connect link
        span.update_name(f"{method} {route}")
        span.set_attribute(HTTP_ROUTE, route)
    span.set_attribute(HTTP_STATUS, status)
    if status >= 500:
        span.set_attribute(ERROR_TYPE, str(status))
        span.set_status(Status(StatusCode.ERROR))


def set_problem_code(code: str) -> None:
    trace.get_current_span().set_attribute(CODE, code)


class ClientSpan:
    """The span of an outbound request."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def answered(self, status: int) -> None:
        self._span.set_attribute(HTTP_STATUS, status)
        if status >= 400:
            _mark_failed(self._span, str(status))


_NOT_TRACED = ClientSpan(trace.INVALID_SPAN)


@contextmanager
def client_span(method: str, url: httpx2.URL) -> Iterator[ClientSpan]:
    """A span around an outbound request, with its outcome. It holds neither URL nor headers."""
    if not is_enabled():
        yield _NOT_TRACED
        return
    name, port = _method_name(method), url.port or (443 if url.scheme == "https" else 80)
    attributes = {HTTP_METHOD: name, SERVER_ADDRESS: url.host, SERVER_PORT: port}
    with _tracer.start_as_current_span(
        name, None, SpanKind.CLIENT, attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield ClientSpan(span)
        except BaseException as error:
            _mark_failed(span, getattr(getattr(error, "code", None), "value", type(error).__name__))
            raise


class TracingTransport(httpx2.AsyncBaseTransport):
    """A span around every outbound request."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        with client_span(request.method, request.url) as span:
            response = await self._inner.handle_async_request(request)
            span.answered(response.status_code)
            return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def _mark_failed(span: trace.Span, kind: str) -> None:
    span.set_attribute(ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR))


def _method_name(name: str) -> str:
    return name if name in _METHODS else _OTHER_METHOD


# --- configuration ------------------------------------------------------------------------


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
