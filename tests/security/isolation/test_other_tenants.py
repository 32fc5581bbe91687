"""Another tenant's names and ids on every route: answered as absent ones are, byte for byte."""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from sqlalchemy import select

from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.store.database.columns import METADATA
from tests.fakes.api import Api
from tests.security.isolation.roles import ROLES, Headers, bearer
from tests.security.isolation.routes import (
    CREATES,
    ONE_OF_THE_TENANT,
    PROVED_OTHERWISE,
    PUBLIC,
    Request,
    guarded,
    requests_to,
    routes,
)
from tests.security.isolation.world import a_world, absent

# each name begins with the one before
TENANTS = Tenant("acm"), Tenant("acme"), Tenant("acme-2")
SOME_ROLES = "no permit", "connect", "person: story_reader"  # which are let in, and may do little
REPEATS_THE_NAME = "GET /v1/providers/{provider}"  # its problem document says the name that was sent
ODD = (
    "*",
    "%",
    "..",
    "\0",
    "a" * 300,
    "' OR '1'='1",
    "{ID}",
    "{id} ",
    "{id}\n",
    "{id}\0",
    "\uff21",
    "\u202e",
    "\udcff",
)
MADE = re.compile(
    r"\b(?:era|hld|con|int|app|key|per|cns|exp|whk|evt|dlv|rcv|def|apr|crd|iss|req|dru|cli|clg|stm|inc|qst|det|rot|imp)_[0-9a-z]{22}"
    r"|req-[0-9a-z]{22}|whsec_[\w+/=]+"
    r"|evg_key_\w+|/connect/[\w-]+|\"revision\":\d+"
)


async def send(api: Api, headers: Headers, request: Request, values: Mapping[str, str]) -> httpx2.Response:
    sent = request.sent(values)
    return await api.client.request(**sent | {"headers": sent["headers"] | headers})


async def with_every_action(api: Api, tenant: Tenant) -> Headers:
    return bearer(await api.app_with(f"caller-of-{tenant}", *Action, tenant=tenant))


async def rows_of(api: Api, tenant: Tenant) -> dict[str, list[Any]]:
    """All that the store has of a tenant, but when and from where its keys and permits were used."""
    uses = ("_use", "caller_network")
    tables = [it for it in METADATA.sorted_tables if "tenant" in it.c and not it.name.endswith(uses)]
    async with api.worker.read() as tx:
        read = tx.connection.execute
        return {
            it.name: [tuple(row) for row in await read(select(it).where(it.c.tenant == tenant))]
            for it in tables
        }


def in_order(names: Iterable[str]) -> list[str]:
    """Creating comes last, so that the names are absent before; in it, what is inside another thing first."""
    return sorted(names, key=lambda it: (it in CREATES, -len(it)))


class Comparison:
    """Sends requests twice: with names of another tenant, and with absent ones."""

    def __init__(
        self, api: Api, headers: Headers, own: Mapping[str, str], foreign: Mapping[str, str]
    ) -> None:
        self.api = api
        self.headers = headers
        self.own = own
        self.foreign = foreign
        self.absent = absent(foreign)

    async def equal(self, request: Request, mix: Iterable[str]) -> int:
        """The status of both answers, which are the same."""
        taken = {**self.own, **{name: self.foreign[name] for name in mix}}
        missing = {**self.own, **{name: self.absent[name] for name in mix}}
        got = await send(self.api, self.headers, request, taken)
        expected = await send(self.api, self.headers, request, missing)
        what = request, mix, got.text
        assert got.status_code == expected.status_code, what
        assert headers_of(got) == headers_of(expected), what
        if got.status_code == 404 and request.route != REPEATS_THE_NAME:
            assert got.content == expected.content, what
        assert without_names(got.text, taken) == without_names(expected.text, missing), what
        return got.status_code


def without_names(text: str, values: Mapping[str, str]) -> str:
    """An answer without the names that were sent, and without ids and secrets that are made for each."""
    for value in sorted(values.values(), key=len, reverse=True):
        text = text.replace(value, "(name)")
    return MADE.sub("(made)", text)


def headers_of(answer: httpx2.Response) -> list[tuple[str, str]]:
    return [it for it in answer.headers.items() if it[0] != "x-request-id"]


def is_404(request: Request, mix: tuple[str, ...]) -> bool:
    """Whether the request is about something that exists, rather than a filter or a name to make."""
    if request.route == "POST /temporal/decode":
        return False  # a sentence stands in for what isn't the caller's to read
    if request.route == "POST /v1/lease":
        return "integration" in mix  # of a subject who has not consented: consent_required
    if request.route.startswith("PUT /v1/apps/{name}/"):
        return "app" in mix
    return not request.is_list and request.route not in CREATES


async def test_every_route_with_another_tenants_names_and_ids_is_404_the_same_as_absent(
    api: Api, capsys: pytest.CaptureFixture[str]
):
    worlds = {tenant: await a_world(api, tenant) for tenant in TENANTS}
    api.refreshes_fail(ErrorCode.PROVIDER_UNREACHABLE)
    compared = 0
    for ours, theirs in (TENANTS[:2], (TENANTS[2], TENANTS[0])):  # whose name is longer, and shorter
        before = await rows_of(api, theirs)
        comparison = Comparison(api, await with_every_action(api, ours), worlds[ours], worlds[theirs])
        for route in in_order(guarded(api.app)):
            for request in requests_to(route):
                for mix in request.mixes():
                    status = await comparison.equal(request, mix)
                    assert status == 404 or not is_404(request, mix), (request, mix)
                    compared += 1
        after = await rows_of(api, theirs)
        changed = {name: [row for row in rows if row not in before[name]] for name, rows in after.items()}
        assert {name: rows for name, rows in changed.items() if rows} == {}
        assert after == before  # none is gone
    _print(capsys, f"{compared} comparisons with absent names on {len(guarded(api.app))} routes")
    assert compared > 250


@pytest.mark.parametrize("roles", [SOME_ROLES, pytest.param(tuple(ROLES), marks=pytest.mark.soak)], ids=len)
async def test_no_role_learns_what_another_tenant_has(
    api: Api, capsys: pytest.CaptureFixture[str], roles: tuple[str, ...]
):
    theirs = Tenant("acme-2")
    foreign, compared = await a_world(api, theirs), 0
    before = await rows_of(api, theirs)
    for number, name in enumerate(roles):
        ours = Tenant(f"acme-{number + 3}")
        own = await a_world(api, ours)
        comparison = Comparison(api, await ROLES[name](api, ours), own, foreign)
        for route in in_order(guarded(api.app)):
            for request in requests_to(route):
                if request.placeholders:
                    await comparison.equal(request, request.placeholders)
                    compared += 1
        assert await rows_of(api, theirs) == before, name
    _print(capsys, f"{compared} comparisons with absent names for {len(roles)} roles")


def _print(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n{line}")


async def test_lists_show_nothing_of_another_tenant(api: Api):
    ours, theirs = TENANTS[1:]
    own, foreign = await a_world(api, ours), await a_world(api, theirs)
    headers = await with_every_action(api, ours)
    everything = [it for route in guarded(api.app) for it in requests_to(route) if it.is_list]
    assert len(everything) >= 10
    for request in everything:
        answer = await send(api, headers, request, own)
        assert answer.status_code == 200
        for hidden in (*foreign.values(), theirs):
            assert hidden not in answer.text, request


async def test_odd_names_and_ids_find_nothing(api: Api):
    """Nothing trims, folds or decodes a name, and `*` names nothing."""
    own = await a_world(api, TENANTS[1])
    headers, tried = await with_every_action(api, TENANTS[1]), 0
    for request in (it for route in guarded(api.app) for it in requests_to(route)):
        for name in request.placeholders:
            if request.route in CREATES or f"{{{name}}}" not in request.url.partition("?")[0]:
                continue
            for odd in ODD:
                value = odd.replace("{id}", own[name]).replace("{ID}", own[name].upper())
                escaped = quote(value, safe="", errors="surrogatepass").replace(".", "%2E")
                answer = await send(api, headers, request, {**own, name: escaped})
                what = request, name, value, answer.text
                assert answer.status_code in (400, 404), what
                assert answer.headers["content-type"] == "application/problem+json", what
                tried += 1
    assert tried > 300


async def test_an_idempotency_key_of_another_tenant_or_app_is_free(api: Api):
    """Neither its answer nor that it was used is seen."""
    ours, theirs = TENANTS[1:]
    worlds = {tenant: await a_world(api, tenant) for tenant in (ours, theirs)}
    callers = [
        (theirs, await with_every_action(api, theirs)),
        (ours, await with_every_action(api, ours)),
        (ours, bearer(await api.app_with("second", *Action, tenant=ours))),
    ]
    tried = 0
    for number, route in enumerate(in_order(_taking_keys(api))):
        for tenant, headers in callers:
            sent = headers | {"Idempotency-Key": f"the-same-{number}"}
            answer = await send(api, sent, requests_to(route)[0], worlds[tenant])
            assert "idempotency_conflict" not in answer.text, route
            if tenant is ours:
                assert not [it for it in worlds[theirs].values() if it in answer.text], route
            tried += answer.is_success
    assert tried > 15


def _taking_keys(api: Api) -> list[str]:
    return [
        f"{method.upper()} {path}"
        for path, operations in api.app.openapi()["paths"].items()
        for method, operation in operations.items()
        if any(it["name"] == "Idempotency-Key" for it in operation.get("parameters", ()))
    ]


async def test_every_route_is_in_the_matrix_and_in_the_description(api: Api):
    """A route is guarded, public or proved otherwise, and the OpenAPI document has it."""
    found = set(routes(api.app))
    assert found >= PUBLIC | PROVED_OTHERWISE
    described = {
        f"{method.upper()} {path}"
        for path, operations in api.app.openapi()["paths"].items()
        for method in operations
    }
    pages = {"GET /", "GET /docs", "GET /openapi.json", "GET /static/evergrant.css", "GET /logos/{file}"}
    scim = " /scim/v2"  # which describes itself: /Schemas, /ResourceTypes
    cells = "POST /v1/moves/{tenant}/{move_id}/{step}"  # between cells of one operator: docs/guide/cells.md
    undescribed = {it for it in found - described if " /console" not in it and scim not in it} - {cells}
    assert undescribed == pages
    assert described <= found
    for route in guarded(api.app):
        placed = route in ONE_OF_THE_TENANT or [
            it for it in requests_to(route) if it.placeholders or it.is_list
        ]
        assert placed, f"{route}: say in routes.py what a request names"
