"""A lease of a judged pair is the lease that the application would give: answer, headers, record, counts."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from evergrant_server.access.credentials import new_delegation_token, parse_key
from evergrant_server.api.leases.routes import TOKEN_PATH
from evergrant_server.core.access import Action, Effect, EnforcementMode
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode
from evergrant_server.telemetry import traces
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.rows import a_delegation
from tests.unit.api.leases.both_ways import (
    NAMES,
    TRACE,
    BothWays,
    Sent,
    api,
    by_id,
    leased,
    no_pair,
    postgres_server,
    put_permit,
)

__all__ = ["api", "postgres_server"]


SENT = (
    Sent("by names"),
    Sent("label", {**NAMES, "label": "default"}),
    Sent("scopes", {**NAMES, "scopes": ["read_user"]}),
    Sent("exact scopes", {**NAMES, "scopes": ["read_user", "api"], "exact": True}),
    Sent("challenged", {**NAMES, "www_authenticate": 'Bearer error="insufficient_scope", scope="api"'}),
    Sent("link challenge", {**NAMES, "challenge": "A" * 43}),
    Sent("trace", headers=((b"traceparent", TRACE.encode()),)),
    Sent("bad trace", headers=((b"traceparent", b"00-00"),)),
    Sent("request id", headers=((b"x-request-id", b"mine-7"),)),
    Sent("request id of 32 digits", headers=((b"x-request-id", b"ab" * 16),)),
    Sent("bad request id", headers=((b"x-request-id", b"not an id"),)),
    Sent("white space", b' {"integration":"crm",\n"subject": "user-1"} '),
    Sent("empty last part", parts=3),
    by_id("by id"),
    by_id("by id, empty", b""),
    by_id("by id, scopes", {"scopes": ["api"]}),
    no_pair("several parts", parts=2),
    no_pair("min_ttl", {**NAMES, "min_ttl": 60}),
    no_pair("narrower", {**NAMES, "scopes": ["read_user"], "exact": True}),
    no_pair("scope that isn't granted", {**NAMES, "scopes": ["sudo"]}),
    no_pair("query", query=b"a=b"),
    no_pair("chunked", headers=((b"transfer-encoding", b"chunked"),), length=None),
    no_pair("length that isn't declared", length=None),
    no_pair("shorter than declared", length=500),
    no_pair("longer than declared", length=3),
    no_pair("length that is no number", headers=((b"content-length", b"+9"),), length=None),
    no_pair("two lengths", headers=((b"content-length", b"3"),)),
    no_pair("length beyond all limits", length=10**7),
    no_pair("digits without end", length=10**30),
    no_pair("a body of 20 kB", json.dumps({**NAMES, "scopes": ["read_user"]}).encode() + b" " * 20_000),
    no_pair("caller that goes", parts=0),
    no_pair("two credentials", headers=((b"authorization", b"Bearer two"),)),
    no_pair("no credential", key=None),
    no_pair("no key", key="nothing"),
    no_pair("basic", key=None, headers=((b"authorization", b"Basic YTpi"),)),
    no_pair("byte above ASCII", key=None, headers=((b"authorization", b"Bearer \xff"),)),
    no_pair("no JSON", b"{"),
    no_pair("no UTF-8", b'{"integration": "\xff"}'),
    no_pair("half a character", b'{"integration": "crm", "subject": "\\ud800"}'),
    no_pair("no object", b"[]"),
    no_pair("nothing", b""),
    no_pair("member that isn't known", {**NAMES, "subjects": "a"}),
    no_pair("member twice", b'{"integration":"crm","subject":"user-2","subject":"user-1", "x": 1}'),
    no_pair("subject that is missing", {"integration": "crm"}),
    no_pair("integration that isn't there", {**NAMES, "integration": "erp"}),
    no_pair("subject that isn't there", {**NAMES, "subject": "user-9"}),
    no_pair("connection that isn't there", b"{}", path="/v1/connections/con_0123456789012345678901/token"),
    no_pair("a proof", {"htm": "GET", "htu": "https://a.test/"}, path="/v1/connections/{id}/proof"),
    no_pair("longer path", path="/v1/lease/"),
    no_pair("path with NUL", b"{}", path="/v1/connections/\0/token"),
    no_pair("deeper path", b"{}", path="/v1/connections/a/b/token"),
    no_pair("another method", method="GET"),
)


@pytest_asyncio.fixture
async def both(api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BothWays]:
    ways = BothWays(api, monkeypatch)
    yield ways
    await ways.judging.state.refresher.stop()
    await ways.judging.state.refusals.stop()


async def test_the_same_requests_both_ways(api: Api, both: BothWays):
    scopes = ("read_user", "api")
    connection = await api.active(await api.integration(), 'a "token" \\ with é', scopes=scopes)
    key = await api.app_with("pipeline", Action.TOKEN)
    api.link.up = False
    for sent in SENT:
        assert await both.compare(sent, connection, key) == (2 if sent.pair else 0), sent.name


@pytest.mark.parametrize(
    ("permit", "pair"),
    [
        ({}, True),
        ({"scope_ceiling": ("read_user",), "expires_at": 600}, True),
        ({"effect": Effect.DENY, "subjects": ("user-2",)}, True),
        ({"effect": Effect.DENY, "subjects": ("user-2",), "sources": ("10.0.0.0/8",)}, False),
        ({"sources": ("192.0.2.0/24",)}, False),
        ({"effect": Effect.DENY, "mode": EnforcementMode.OBSERVE}, False),
        ({"effect": Effect.DENY}, False),
    ],
)
async def test_permits_both_ways(api: Api, both: BothWays, permit: dict[str, Any], pair: bool):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    if seconds := permit.get("expires_at"):
        permit = {**permit, "expires_at": api.clock.now() + timedelta(seconds=seconds)}
    await put_permit(api, "another", **permit)
    assert await both.compare(Sent("by names"), connection, key) == (2 if pair else 0)


@pytest.mark.parametrize(
    ("grant", "pair"),
    [
        ({"lifetime": None}, True),
        ({"refreshable": False}, True),
        ({"token_type": "DPoP"}, False),
        ({"scopes": ()}, True),
    ],
)
async def test_grants_both_ways(api: Api, both: BothWays, grant: dict[str, Any], pair: bool):
    connection = await api.active(await api.integration(), **grant)
    key = await api.app_with("pipeline", Action.TOKEN)
    assert await both.compare(Sent("by names"), connection, key) == (2 if pair else 0)


async def test_a_connection_that_needs_a_consent_both_ways(api: Api, both: BothWays):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    await api.change(connection, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    assert await both.compare(Sent("by names"), connection, key) == 0
    await api.change(connection, lambda it: it.token_reported())
    assert await both.compare(Sent("by names"), connection, key) == 0


async def test_a_delegation_both_ways(api: Api, both: BothWays):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    made = a_delegation(await api.app_named("pipeline"), parse_key(key).id, "user-1", api.clock.now())
    text, mac = new_delegation_token(api.parts.ring, TENANT, made.id)
    async with api.worker.write() as tx:
        await tx.delegations.add(made.__replace__(secret_hash=mac))
    assert await both.compare(Sent("delegated", key=text), connection, key) == 0


async def test_a_lease_of_a_judged_pair_is_traced_as_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("evergrant"))
    monkeypatch.setattr(traces._state, "provider", provider)
    async with running_api(tmp_path) as api:
        connection, key = await api.active_for("pipeline", Action.TOKEN)
        for path, body in (("/v1/lease", NAMES), (f"/v1/connections/{connection.id}/token", {})):
            for _ in range(2):
                assert (await api.post(path, key, body, headers={"traceparent": TRACE})).status_code == 200
        assert leased(api) == 2
        served = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
        named = [(span.name, dict(span.attributes or {})) for span in served]
        assert named[0] == named[1] != named[2] == named[3]
        assert [name for name, _ in named[1:3]] == ["POST /v1/lease", f"POST {TOKEN_PATH}"]
        recorded = {record.context.trace_id for record in await api.records(AuditAction.LEASE_ISSUED)}
        assert {trace.format_trace_id(span.context.trace_id) for span in served} == recorded == {TRACE[3:35]}
