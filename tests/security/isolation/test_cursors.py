"""Cursors: opaque, signed, and good for the tenant and the list they came from."""

import base64
import json

import pytest

from evergrant_server.core.access import Action
from tests.fakes.api import OTHER, TENANT, Api
from tests.security.isolation.routes import Request, guarded, requests_to
from tests.security.isolation.world import a_world


async def _cursor(api: Api, key: str, request: Request, values: dict[str, str]) -> str | None:
    answer = await api.get(_with(request.sent(values)["url"], "limit=1"), key)
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("application/jsonl"):
        return json.loads(answer.text.splitlines()[-1])["page"]["next"]
    return answer.json()["next_cursor"]


def _with(url: str, more: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{more}"


def _forged(cursor: str) -> list[str]:
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    edited = base64.urlsafe_b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode().rstrip("=")
    unsigned = base64.urlsafe_b64encode(b"\0" * 16 + raw[16:]).decode().rstrip("=")
    return [edited, unsigned, "x", "con_0000000000000000000000", "%00", "a" * 1999, ""]


async def test_cursors_that_are_forged_or_of_another_tenant_or_list_are_refused(
    api: Api, capsys: pytest.CaptureFixture[str]
):
    lists = [
        request
        for route in guarded(api.app)
        for request in requests_to(route)
        if "cursor" in _parameters(api, route)
    ]
    worlds = {tenant: await a_world(api, tenant) for tenant in (TENANT, OTHER)}
    keys = {tenant: await api.app_with("caller", *Action, tenant=tenant) for tenant in worlds}
    own = {it: await _cursor(api, keys[TENANT], it, worlds[TENANT]) for it in lists}
    tried = 0
    for request in lists:
        url, cursor = request.sent(worlds[TENANT])["url"], own[request]
        theirs = await _cursor(api, keys[OTHER], request, worlds[OTHER])
        others = [it for other, it in own.items() if other != request and it is not None]
        for wrong in [*others, *([theirs] if theirs else []), *(_forged(cursor) if cursor else [])]:
            answer = await api.get(_with(url, f"cursor={wrong}"), keys[TENANT])
            assert (answer.status_code, answer.json().get("field")) == (400, "cursor"), (url, wrong)
            tried += 1
        if cursor:
            assert (await api.get(_with(url, f"limit=1&cursor={cursor}"), keys[TENANT])).status_code == 200
    with capsys.disabled():
        print(f"\n{tried} cursors refused on {len(lists)} lists")
    assert sum(it is not None for it in own.values()) >= 6


def _parameters(api: Api, route: str) -> set[str]:
    method, path = route.split(" ", 1)
    operation = api.app.openapi()["paths"].get(path, {}).get(method.lower(), {})
    return {it["name"] for it in operation.get("parameters", ())}
