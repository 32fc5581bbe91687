"""A provider's API takes so many calls: apps share them evenly, and none uses them up for the others."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action, Priority
from evergrant_server.core.api_limits.limits import DocumentedQuota
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from tests.fakes.api import Api, running_api
from tests.fakes.platform.gateway import (
    OK,
    Gateway,
    RawUpstream,
    Seen,
    answer,
    running_gateway,
    upstream_api,
)

MOST, WINDOW_S = 100, 60
DOCUMENTED = DocumentedQuota(requests=MOST, window_s=WINDOW_S, per="integration")
MODEST = ("second", "third")


class CountingProvider:
    """100 calls a minute, counted by whose token it is; beyond them 429. `headers`: its replies say so."""

    def __init__(self, *, headers: bool) -> None:
        self.served: list[str] = []
        self.refused = 0
        self._headers = headers
        self._began = time.monotonic()

    async def serve(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if len(self.served) >= MOST:
            self.refused += 1
            writer.write(answer(b"", "429 Too Many Requests", "Retry-After: 30"))
            return
        self.served.append(seen.target.rpartition("/")[2])
        left, ends_in = MOST - len(self.served), WINDOW_S - int(time.monotonic() - self._began)
        limits = f"RateLimit-Limit: {MOST}", f"RateLimit-Remaining: {left}", f"RateLimit-Reset: {ends_in}"
        writer.write(answer(b"{}", "200 OK", *(limits if self._headers else ())))


class World:
    """One integration, a connection at it, and apps that may call its API."""

    def __init__(self, api: Api, gateway: Gateway, connection: Connection) -> None:
        self.api, self.gateway, self.connection = api, gateway, connection

    async def app(self, name: str, priority: Priority = Priority.NORMAL) -> str:
        key = await self.api.app_with(name, Action.PROXY)
        if priority is not Priority.NORMAL:
            app = await self.api.app_named(name)
            async with self.api.worker.write() as tx:
                (permit,) = await tx.access.permits_of(app)
                await tx.access.put_permit(permit.__replace__(priority=priority), expected=permit.revision)
        return key

    async def call(self, key: str, path: str = "users") -> httpx2.Response:
        return await self.gateway.get(f"/v1/proxy/{self.connection.id}/{path}", key)


@asynccontextmanager
async def world(
    folder: Path, upstream: RawUpstream, *limits: DocumentedQuota, wait_s: float = 0, **more: Any
) -> AsyncIterator[World]:
    async with (
        running_api(folder, gateway_limit_wait=timedelta(seconds=wait_s)) as api,
        running_gateway(api, upstream, api_limits=limits, **more) as gateway,
    ):
        yield World(api, gateway, await api.active(await api.integration()))


@pytest.mark.parametrize("headers", [True, False], ids=["headers", "documentation alone"])
async def test_three_apps_share_a_provider_with_100_calls_a_minute(tmp_path: Path, headers: bool):
    provider = CountingProvider(headers=headers)
    async with upstream_api() as upstream, world(tmp_path, upstream, DOCUMENTED) as three:
        upstream.handler = provider.serve
        keys = {name: await three.app(name) for name in ("greedy", *MODEST)}
        statuses = {name: Counter[int]() for name in keys}

        async def calls(name: str, number: int) -> None:
            for _ in range(number):
                answered = await three.call(keys[name], f"of/{name}")
                statuses[name][answered.status_code] += 1

        await asyncio.gather(*(calls("greedy", 20) for _ in range(8)))
        await asyncio.gather(*(calls(name, 12) for name in MODEST), calls("greedy", 20))
    assert [statuses[name] for name in MODEST] == [{200: 12}, {200: 12}], "none of theirs is refused"
    assert 45 <= statuses["greedy"][200] <= 60, "half at once, as long as nobody else has called"
    assert statuses["greedy"][429] == 180 - statuses["greedy"][200]
    assert provider.refused == 0, "the provider never sees a call too many"
    assert len(provider.served) <= MOST


async def test_a_refusal_says_when_and_who_may_change_it(tmp_path: Path):
    quota = DocumentedQuota(requests=1, window_s=WINDOW_S, per="connection")
    async with upstream_api() as upstream, world(tmp_path, upstream, quota) as one:
        key = await one.app("agent")
        assert (await one.call(key)).status_code == 200
        refused = await one.call(key)
        records = await one.api.records(AuditAction.LEASE_REFUSED)
        issued = await one.api.records(AuditAction.PROXY_CALLED)
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (429, "api_limit_reached")
    assert refused.headers["evergrant-error"] == "api_limit_reached"
    assert 50 < int(refused.headers["retry-after"]) <= 64
    assert problem["retry_after"] <= 64
    assert "--priority" in problem["repair"]
    assert (problem["repairer"], problem["kind"]) == ("time", "ProviderUnavailable")
    assert [record.detail["code"] for record in records] == ["api_limit_reached"]
    assert (len(issued), len(upstream.seen)) == (1, 1)


async def test_a_call_waits_where_the_window_ends_soon(tmp_path: Path):
    window = ("X-RateLimit-Limit: 1", "X-RateLimit-Remaining: 0", "X-RateLimit-Reset-After: 0.4")
    async with upstream_api() as upstream, world(tmp_path, upstream, wait_s=30) as one:
        upstream.responses = [answer(b"", "200 OK", *window)]
        key = await one.app("agent")
        began = time.monotonic()
        assert [(await one.call(key)).status_code for _ in range(2)] == [200, 200]
        assert time.monotonic() - began >= 0.4


async def test_a_pause_that_the_provider_asked_for_is_everyones(tmp_path: Path):
    busy = answer(b"", "429 Too Many Requests", "Retry-After: 40")
    async with upstream_api() as upstream, world(tmp_path, upstream) as one:
        upstream.responses = [busy]
        first, second = await one.app("first"), await one.app("second")
        told = await one.call(first)
        assert (told.status_code, told.headers.get("evergrant-error")) == (429, None), "the provider's own"
        refused = await one.call(second)
        assert refused.json()["code"] == "api_limit_reached"
        assert 38 <= int(refused.headers["retry-after"]) <= 40
        assert (await one.call(second, "files")).status_code == 200
    assert len(upstream.seen) == 2


async def test_a_permit_with_a_high_priority_has_a_larger_part(tmp_path: Path):
    async with upstream_api() as upstream, world(tmp_path, upstream, DOCUMENTED) as two:
        keys = {
            "low": await two.app("low", Priority.LOW),
            "high": await two.app("high", Priority.HIGH),
        }
        made = Counter[str]()
        for _ in range(90):
            for name, key in keys.items():
                made[name] += (await two.call(key)).status_code == 200
    assert made["high"] >= 3 * made["low"] > 0


async def test_a_call_that_isnt_sent_uses_nothing_up(tmp_path: Path):
    quota = DocumentedQuota(requests=1, window_s=WINDOW_S, per="connection")
    async with upstream_api() as upstream, world(tmp_path, upstream, quota) as one:
        key = await one.app("agent")
        await one.api.parts.ledger.stop()
        ledger = one.gateway.parts.api.ledger
        await ledger.stop()  # no record can be committed
        assert (await one.call(key)).status_code == 503
        await ledger.start()
        assert (await one.call(key)).status_code == 200


async def test_a_renewed_token_is_a_second_call(tmp_path: Path):
    quota = DocumentedQuota(requests=4, window_s=WINDOW_S, per="connection")  # two at once
    async with upstream_api() as upstream, world(tmp_path, upstream, quota) as one:
        upstream.responses = [answer(b"", "401 Unauthorized"), OK]
        one.api.refreshes_with("at-2")
        key = await one.app("agent")
        assert (await one.call(key)).status_code == 200
        assert (await one.call(key)).json()["code"] == "api_limit_reached"
    assert len(upstream.seen) == 2


async def test_messages_to_an_mcp_server_are_calls_too(tmp_path: Path):
    left = ('RateLimit-Policy: "m";q=5;w=60', 'RateLimit: "m";r=0;t=50')
    async with upstream_api() as upstream, world(tmp_path, upstream) as one:
        upstream.responses = [answer(b"{}", "200 OK", "Content-Type: application/json", *left)]
        server = await one.api.integration("tools", provider="mcp", params={"url": f"{upstream.url}/mcp"})
        connection = await one.api.active(server, "at-mcp")
        key = await one.app("agent")
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        headers = {"Accept": "application/json, text/event-stream"}

        async def post() -> httpx2.Response:
            return await one.gateway.call("POST", f"/mcp/{connection.id}", key, json=message, headers=headers)

        assert (await post()).status_code == 200
        refused = await post()
    assert (refused.status_code, refused.json()["error"]["data"]["code"]) == (429, "api_limit_reached")
    assert 45 <= int(refused.headers["retry-after"]) <= 50
    assert len(upstream.seen) == 1
