"""One lease, followed from the client's call to the provider, as a real OTLP receiver saw it."""

import asyncio
import re
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from evergrant_server.telemetry.traces import (
    HTTP_METHOD,
    HTTP_ROUTE,
    HTTP_STATUS,
    SERVER_ADDRESS,
    SERVER_PORT,
)
from examples.demo.subject import Subject
from tests.fakes.otlp import Received, attributes, running_receiver
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.providers.scripted_provider import ScriptedProvider, ok
from tests.fakes.temporal import running_temporal

PAGE = (Path(__file__).parents[3] / "docs/telemetry.md").read_text(encoding="utf-8")


@asynccontextmanager
async def observed() -> AsyncIterator[tuple[RunningPlatform, ScriptedProvider, Received]]:
    """A platform whose processes export to a receiver, and its provider."""
    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        place = Path(folder)
        async with (
            running_receiver() as received,
            ScriptedProvider() as idp,
            running_temporal(place) as temporal,
        ):
            env = {**received.env, "EVERGRANT_LOG_FORMAT": "json"}
            async with running_platform(place, temporal.address, allow=(idp.allowance,), env=env) as platform:
                yield platform, idp, received


async def connected(http: httpx2.AsyncClient) -> str:
    """A connection and its consent; returns the connection's id."""
    made = await http.post("/v1/connections", json={"integration": "crm", "subject": "user-1"})
    assert made.status_code == 201, made.text
    async with Subject("", "") as subject:
        await subject.consent(made.json()["connect_url"])
    where = f"/v1/connections/{made.json()['id']}"
    await eventually(lambda: http.get(where), lambda it: it.json()["state"] == "active")
    return made.json()["id"]


async def expired(http: httpx2.AsyncClient, connection_id: str) -> None:
    """Wait until its token is over: the next lease has to wait for a refresh."""
    end = datetime.fromisoformat((await http.get(f"/v1/connections/{connection_id}")).json()["expires_at"])
    while datetime.now(UTC) <= end:
        await asyncio.sleep(0.05)


def chain(span: Span, spans: list[Span]) -> list[str]:
    """The names from this span up to the caller's."""
    by_id = {it.span_id: it for it in spans}
    names = [span.name]
    while span.parent_span_id in by_id:
        span = by_id[span.parent_span_id]
        names.append(span.name)
    return names


@pytest.mark.soak
async def test_one_trace_from_the_caller_to_the_provider():
    async with observed() as parts:
        await follow_one_lease(*parts)


async def follow_one_lease(platform: RunningPlatform, idp: ScriptedProvider, received: Received) -> None:
    await platform.integration("crm", idp)
    key = await platform.app("reader", "crm", "token", "connect")
    async with platform.client() as admin, platform.caller(key) as http:
        idp.script(ok(expires_in=2))
        await expired(http, await connected(http))
        trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
        lease = await http.post(
            "/v1/lease",
            json={"integration": "crm", "subject": "user-1"},
            headers={"traceparent": f"00-{trace_id}-{span_id}-01", "tracestate": "evil=1", "baggage": "e=1"},
        )
        assert lease.status_code == 200, lease.text
        assert idp.refreshes == 1, (lease.json(), [(c.endpoint, c.params) for c in idp.calls])
        records = (await admin.get("/v1/audit?limit=100")).json()
        metrics_of_api = (await http.get("/metrics", headers={"Authorization": ""})).text

    def provider_call() -> Span | None:
        return next((it for it in received.trace(trace_id) if attributes(it).get(SERVER_PORT)), None)

    await received.until(provider_call)
    await received.until(lambda: any(it.name.startswith("POST /v1/lease") for it in received.trace(trace_id)))
    for ends_late in ("StartWorkflowUpdate", "HandleUpdate"):  # each process exports when it comes to it
        await received.until(lambda name=ends_late: any(it.name.startswith(name) for it in received.spans))
    spans = received.trace(trace_id)
    call = provider_call()
    assert call is not None
    assert chain(call, spans) == [
        "POST",
        "RunActivity:refresh_grant",
        "StartActivity:refresh_grant",
        "HandleUpdate:ensure_fresh",
        "StartWorkflowUpdate:ensure_fresh",
        "POST /v1/lease",
    ]
    root = next(it for it in spans if it.name == "POST /v1/lease")
    assert root.parent_span_id.hex() == span_id
    assert [it.name for it in spans if it.trace_state] == [], "of a caller only the ids are taken over"
    about = attributes(call)
    assert about == {
        HTTP_METHOD: "POST",
        SERVER_ADDRESS: "127.0.0.1",
        SERVER_PORT: idp.port,
        HTTP_STATUS: 200,
    }
    assert attributes(root)[HTTP_ROUTE] == "/v1/lease"
    spans_explained = re.findall(r"^\| `(.+?)` \| (?:client|server) \|", PAGE, re.MULTILINE)
    known = [re.sub(r"\\{\w+\\}", ".+", re.escape(name)) for name in spans_explained]
    strange = {it.name for it in received.spans if not any(re.fullmatch(name, it.name) for name in known)}
    assert strange == set(), "docs/telemetry.md lists every span"
    refreshed = [it for it in records["items"] if it["action"] == "grant.refreshed"]
    assert [it["trace_id"] for it in refreshed] == [trace_id], "the audit log names the same trace"
    await _metrics_hold(platform, metrics_of_api, received)


async def _metrics_hold(platform: RunningPlatform, of_api: str, received: Received) -> None:
    """Both expositions parse, say what happened, and name no tenant, id or subject."""
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        of_worker = (await http.get(platform.worker_metrics)).text
        base = platform.worker_metrics.removesuffix("/metrics")
        pages = [(await http.get(base + path)).status_code for path in ("/livez", "/readyz", "/else")]
        assert pages == [200, 200, 404]
    api = {it.name: it for it in text_string_to_metric_families(of_api)}
    worker = {it.name: it for it in text_string_to_metric_families(of_worker)}
    leases = {
        (s.labels["evergrant_provider"], s.labels["evergrant_outcome"]): s.value
        for s in api["evergrant_lease_count"].samples
        if s.name.endswith("_total")
    }
    assert leases == {("generic", "leased"): 1}
    assert "evergrant_audit_batch_size" in api
    left = {s.name: s.value for s in api["evergrant_lease_time_to_expiry_seconds"].samples}
    assert 3000 < left["evergrant_lease_time_to_expiry_seconds_sum"] <= 3600
    refreshes = [s for s in worker["evergrant_refresh_count"].samples if s.name.endswith("_total")]
    assert [(s.labels["evergrant_outcome"], s.value) for s in refreshes] == [("refreshed", 1)]
    assert worker["evergrant_refresh_duration_seconds"].samples
    assert worker["evergrant_outbox_depth"].samples
    assert any(name.startswith("temporal_") for name in worker), "the SDK's own metrics are there too"
    for text in (of_api, of_worker):
        for word in ("user-1", "con_", "int_", "app_", "acme", "crm"):
            assert word not in text
    await received.until(lambda: any(it.name == "evergrant.lease.count" for it in received.metrics))
    metrics_explained = re.findall(r"^\| `(.+?)` \| (?:counter|gauge|histogram) \|", PAGE, re.MULTILINE)
    sent = {it.name for it in received.metrics if it.name.startswith("evergrant.")}
    assert sent <= set(metrics_explained)
