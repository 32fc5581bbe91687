"""Limits of leases: who is refused, until when, and what the headers say."""

import asyncio
from datetime import datetime
from pathlib import Path

import httpx2
import pytest

from evergrant_server.access.limits import Gcra
from evergrant_server.audit.lease_record import LeaseFacts
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api, running_api

pytestmark = pytest.mark.usefixtures("limit_time")


def limited(answer: httpx2.Response) -> tuple[int, str, list[str], str]:
    body = answer.json()
    return answer.status_code, body["code"], body["violated-policies"], answer.headers["ratelimit"]


def test_a_quota_comes_back_evenly_and_the_wait_is_not_too_short(limit_time: list[float]):
    gcra = Gcra()
    met = [gcra.take("app", "a", 3) for _ in range(4)]
    assert [(it.remaining, it.seconds, it.allowed) for it in met] == [
        (2, 20, True), (1, 40, True), (0, 20, True), (0, 20, False)
    ]  # fmt: skip
    assert gcra.take("app", "b", 3).allowed
    for at, allowed in ((19.9, False), (20.0, True), (20.0, False), (80.0, True), (80.0, True)):
        limit_time[0] = at
        assert gcra.take("app", "a", 3).allowed is allowed


@pytest.mark.parametrize("policy", ["app", "tenant", "integration"])
async def test_a_limit_that_is_reached_is_named_with_its_wait(tmp_path: Path, policy: str):
    async with running_api(tmp_path, **{f"lease_limit_per_{policy}": 2}) as api:
        _, key = await api.active_for("pipeline", Action.TOKEN)
        first, _, refused = [await api.lease(key) for _ in range(3)]
        assert first.status_code == 200
        assert first.headers["ratelimit-policy"] == f'"{policy}";q=2;w=60'
        assert first.headers["ratelimit"] == f'"{policy}";r=1;t=30'
        assert limited(refused) == (429, "rate_limited", [policy], f'"{policy}";r=0;t=30')
        assert refused.headers["retry-after"] == "30"
        assert refused.json()["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
        assert "at-1" not in refused.text
        assert len(await api.records(AuditAction.LEASE_ISSUED)) == 2
        (told,) = await api.records(AuditAction.LEASE_REFUSED)
        assert told.detail["code"] == "rate_limited"


async def test_a_lease_that_is_judged_again_counts_once_against_its_integration(tmp_path: Path):
    async with running_api(tmp_path, lease_limit_per_integration=3) as api:
        admin = await api.app_with("admin", Action.ADMIN)
        _, key = await api.active_for("pipeline", Action.TOKEN)
        assert (await api.lease(key)).status_code == 200
        changed = await api.call("PUT", "/v1/apps/pipeline", admin, json={"lease_limit": 60})
        assert changed.status_code == 200  # the next claim, judged by the cached app, is stale
        again = await api.lease(key)
        assert again.status_code == 200
        counted = [it.strip().partition(";")[0] for it in again.headers["ratelimit"].split(",")]
        assert counted.count('"integration"') == 1
        assert (await api.lease(key)).status_code == 200


async def test_an_apps_own_limit_replaces_the_general_one(tmp_path: Path):
    async with running_api(tmp_path, lease_limit_per_app=1) as api:
        admin = await api.app_with("admin", Action.ADMIN)
        _, key = await api.active_for("pipeline", Action.TOKEN)
        other = await api.app_with("other", Action.TOKEN)
        assert [(await api.lease(key)).status_code for _ in range(2)] == [200, 429]
        answer = await api.call("PUT", "/v1/apps/other", admin, json={"lease_limit": 3})
        assert (answer.status_code, answer.json()["lease_limit"]) == (200, 3)
        assert [(await api.lease(other)).status_code for _ in range(4)] == [200, 200, 200, 429]
        for wrong in (0, -1, 1.5, "many", 10_000_001):
            answer = await api.call("PUT", "/v1/apps/other", admin, json={"lease_limit": wrong})
            assert answer.status_code == 400, wrong
        (put,) = [it for it in await api.records(AuditAction.APP_PUT) if "lease_limit" in it.detail]
        assert put.detail["lease_limit"] == 3


async def test_requests_beyond_those_that_an_app_may_have_open_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with running_api(tmp_path, open_leases_per_app=2) as api:
        _, key = await api.active_for("pipeline", Action.TOKEN)
        other = await api.app_with("other", Action.TOKEN)
        go_on = asyncio.Event()
        record = api.parts.ledger.record_pair

        async def waiting(facts: LeaseFacts, at: datetime, trace_id: str) -> str:
            if facts.claim.context.by == "app:pipeline":
                await go_on.wait()
            return await record(facts, at, trace_id)

        monkeypatch.setattr(api.parts.ledger, "record_pair", waiting)
        leases = [asyncio.create_task(api.lease(key)) for _ in range(4)]
        done: set[asyncio.Task[httpx2.Response]] = set()
        while len(done) < 2:
            done, _ = await asyncio.wait(leases, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            refused = task.result()
            assert limited(refused)[:3] == (429, "rate_limited", ["open-requests"])
            assert refused.headers["ratelimit-policy"] == '"open-requests";q=2;qu="concurrent-requests"'
            assert refused.headers["retry-after"] == "1"
        assert (await api.lease(other)).status_code == 200
        go_on.set()
        assert sorted([(await it).status_code for it in leases]) == [200, 200, 429, 429]
        assert (await api.lease(key)).status_code == 200  # what has ended is not open


async def test_without_a_limit_no_header_speaks_of_one(api: Api):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    assert not [it for it in (await api.lease(key)).headers if it.startswith("ratelimit")]
