"""The audit log in the console and by its filters: what fits, page by page, a record, and its receipt."""

import json
import re
from datetime import timedelta
from urllib.parse import urlencode

import pytest

from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import at_console, person_at_console
from tests.security.isolation.world import a_world

PLACE = re.compile(r'href="/console/audit/([\w.-]+:\d+)"')


async def recorded(api: Api, count: int, action: AuditAction, by: str, object: str = "con_1") -> None:
    """Records, a minute after each other; the last is of now."""
    now = api.clock.now()
    async with api.worker.write() as tx:
        for number in range(count):
            at = now - timedelta(minutes=count - 1 - number)
            detail = {"number": number, "words": "<b>said", "reason": "a test"}
            entry = AuditEntry(
                tenant=TENANT,
                at=at,
                action=action,
                object=object,
                context=RequestContext(by=by),
                detail=detail,
            )
            await audit.append(tx, entry)


async def test_records_are_found_by_action_actor_object_and_time_25_a_page(api: Api):
    key = await api.app_with("boss", Action.ADMIN)
    browser = await at_console(api, key)
    await recorded(api, 30, AuditAction.GRANT_REFRESHED, "worker", "con_a")
    await recorded(api, 3, AuditAction.LEASE_ISSUED, "app:sync", "con_b")
    await recorded(api, 2, AuditAction.PERMIT_PUT, "app:boss", "per_1")
    for query, count in (
        ("action=grant.refreshed", 25),
        ("action=permit.put", 2),
        ("by=app:sync", 3),
        ("by=app:sync&object=con_a", 0),
        ("object=con_a", 25),
        ("object=con_b&action=lease.issued", 3),
        ("action=permit.put&by=worker", 0),
        ("object=nothing", 0),
    ):
        page = await browser.page(f"/console/audit?{query}")
        assert len(set(PLACE.findall(page))) == count, query
    page, seen = await browser.page("/console/audit?action=grant.refreshed"), list[str]()
    for _ in range(2):
        seen += dict.fromkeys(PLACE.findall(page))
        following = re.search(r'href="(\?[^"]*cursor=[^"]+)"[^>]*>Next page', page)
        if following is None:
            break
        page = await browser.page(f"/console/audit{following[1].replace('&amp;', '&')}")
    assert (len(seen), len(set(seen))) == (30, 30)
    now = api.clock.now()
    window = f"action=grant.refreshed&since={now - timedelta(minutes=10):%Y-%m-%dT%H:%M}"
    assert len(set(PLACE.findall(await browser.page(f"/console/audit?{window}")))) == 11
    window += f"&until={now - timedelta(minutes=5):%Y-%m-%dT%H:%M}"
    assert len(set(PLACE.findall(await browser.page(f"/console/audit?{window}")))) == 5
    for query in ("action=fly", "since=soon", "until=2026-13-01", "cursor=x"):
        assert (await browser.browser.get(f"/console/audit?{query}")).status_code == 400, query


async def test_a_record_is_shown_whole_and_its_receipt_is_the_apis(api: Api):
    world = await a_world(api, TENANT)
    browser = await person_at_console(api, PersonRole.AUDITOR)
    page = await browser.page(f"/console/audit/{world['audit_place']}")
    record = (
        await api.get(
            "/v1/audit/record",
            await api.app_with("a", Action.AUDIT),
            params={"record": world["audit_record"]},
        )
    ).json()
    for shown in (record["action"], record["object"], record["hash"], world["audit_record"]):
        assert shown in page
    assert f"/console/audit/{world['audit_place']}/receipt" in page
    receipt = await browser.browser.get(f"/console/audit/{world['audit_place']}/receipt")
    assert (receipt.status_code, receipt.headers["cache-control"]) == (200, "no-store")
    assert receipt.headers["content-disposition"].startswith('attachment; filename="receipt-')
    proof = await api.get(
        "/v1/audit/proof", await api.app_with("b", Action.AUDIT), params={"record": world["audit_record"]}
    )
    assert json.loads(receipt.text) == proof.json()


async def test_a_record_without_a_receipt_yet_says_so_and_words_are_no_markup(api: Api):
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    await recorded(api, 1, AuditAction.REFRESH_FAILED, "app:<i>", "con_" + "0" * 22)
    page = await browser.page("/console/audit?by=app:<i>")
    (place,) = set(PLACE.findall(page))
    page += await browser.page(f"/console/audit/{place}")
    assert ("<b>said" in page, "<i>" in page, "&lt;b&gt;said" in page) == (False, False, True)
    answer = await browser.browser.get(f"/console/audit/{place}/receipt")
    assert (answer.status_code, "no receipt yet" in answer.text) == (404, True)


@pytest.mark.parametrize(
    "place", ["x", "main:-1", "main:x", ":1", "main:" + "9" * 30, "no-such-shard:1", "main:1:2"]
)
async def test_a_place_that_there_isnt_is_not_found(api: Api, place: str):
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    for path in (f"/console/audit/{place}", f"/console/audit/{place}/receipt"):
        assert (await browser.browser.get(path)).status_code == 404


async def test_the_api_filters_alike_and_looks_at_so_many_records_for_one_actor(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evergrant_server.api.audit._LOOKED_AT_ONCE", 5)
    monkeypatch.setattr("evergrant_server.api.audit._MOST_LOOKED_AT", 10)
    key = await api.app_with("boss", Action.ADMIN)
    await recorded(api, 1, AuditAction.APP_PUT, "app:rare")
    api.clock.advance(60)
    await recorded(api, 25, AuditAction.GRANT_REFRESHED, "worker")
    query = {"by": "app:rare", "newest_first": "true"}
    pages, actors, cursor = 0, list[str](), ""
    while True:
        answer = (
            await api.get("/v1/audit", key, params=query | ({"cursor": cursor} if cursor else {}))
        ).json()
        pages, actors = pages + 1, actors + [record["by"] for record in answer["items"]]
        if (cursor := answer["next_cursor"]) is None:
            break
    assert (pages, actors) == (3, ["app:rare"])
    query = {"action": "app.put", "object": "con_1", "limit": "1"}
    assert [record["by"] for record in (await api.get("/v1/audit", key, params=query)).json()["items"]] == [
        "app:rare"
    ]
    for wrong in ({"action": "fly"}, {"since": "soon"}, {"by": ""}):
        assert (await api.get("/v1/audit", key, params=wrong)).status_code == 400


async def test_no_filter_finds_a_record_of_another_tenant(api: Api):
    theirs = Tenant("acme-2")
    await a_world(api, theirs)
    async with api.worker.read() as tx:
        window = audit.Window(actions=(AuditAction.DELEGATION_RULE_PUT,))
        record, *_ = await audit.page(tx, theirs, window=window)
    key = await api.app_with("boss", Action.ADMIN)
    browser = await at_console(api, key)
    for query in ({"object": record.object}, {"by": record.context.by}, {"action": record.action.value}):
        assert (await api.get("/v1/audit", key, params=query)).json()["items"] == [], query
        assert PLACE.findall(await browser.page(f"/console/audit?{urlencode(query)}")) == [], query
