"""A real OTLP receiver (oteltap) on loopback that keeps every span and log record it gets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port


class Received:
    """What arrived so far."""

    def __init__(self, port: int) -> None:
        self.env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        self.endpoint = f"http://127.0.0.1:{port}/v1/traces"
        self.logs_endpoint = f"http://127.0.0.1:{port}/v1/logs"
        self.spans: list[Span] = []
        self.logs: list[Any] = []
        self.metrics: list[Any] = []

    def trace(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    async def until(self, condition: Callable[[], Any], limit_s: float = PATIENCE_S) -> Any:
        async with asyncio.timeout(limit_s):
            while not (found := condition()):
                await asyncio.sleep(0.05)
        return found


@asynccontextmanager
async def running_receiver() -> AsyncIterator[Received]:
    port = free_port()
    received = Received(port)
    settings = OtelTapHttpProtobufReceiverSettings(http_port=port, listen_on_all_interfaces=False)
    async with OtelTapHttpProtobufReceiver(settings) as receiver:
        spans, metrics, logs = receiver.stream_traces(), receiver.stream_metrics(), receiver.stream_logs()

        async def keep(stream: AsyncIterator[Any], into: list[Any]) -> None:
            async for it in stream:
                into.append(it)

        keeping = [
            asyncio.create_task(keep(spans, received.spans)),
            asyncio.create_task(keep(metrics, received.metrics)),
            asyncio.create_task(keep(logs, received.logs)),
        ]
        try:
            yield received
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)


def attributes(span: Span) -> dict[str, Any]:
    return {it.key: getattr(it.value, it.value.WhichOneof("value")) for it in span.attributes}
