"""Permits in the console: what one would reach and refuse is shown before it is saved, and is what the judge
says afterwards."""

import html
import re
from datetime import timedelta
from typing import Any

import pytest

from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.messages.base import RequestContext
from tests.fakes.api import TENANT, Api
from tests.security.console import ConsoleBrowser, at_console

NEW, ONLY = "/console/apps/sync/new/permit", "/console/apps/sync/permits/only"
USE = {"integration": "crm", "actions": "token", "subjects": "*"}
CALLS = (
    *(
        "GET /user/repos",
        "GET /user/repos",
        "POST /user/repos",
        "GET /orgs/acme/members",
        "DELETE /user/keys/7",
    ),
    *("POST /mcp initialize", "POST /mcp tools/call search", "POST /mcp tools/call delete_everything"),
)


async def a_browser(api: Api) -> tuple[ConsoleBrowser, str]:
    key = await api.app_with("boss", Action.ADMIN)
    return await at_console(api, key), key


async def leased(api: Api, *actions: Action) -> tuple[list[Connection], str]:
    """Three connections, and an app that has leased ann's thrice and bob's twice."""
    integration = await api.integration()
    rows = [
        await api.active(integration, subject=subject, lifetime=None, scopes=scopes)
        for subject, scopes in (("ann", ("read_user",)), ("bob", ("read_user", "api")), ("cyd", ("api",)))
    ]
    key = await api.app_with("sync", *(actions or (Action.TOKEN,)))
    for subject in ("ann", "bob", "ann", "bob", "ann"):
        assert (await api.lease(key, subject=subject)).status_code == 200
    return rows, key


def numbers(page: str) -> dict[str, tuple[int, int]]:
    """Of how many connections, and of how many leases and calls, the page says that they would be lost."""
    text = re.sub(r"<[^>]+>|\s+", " ", page)
    shown: dict[str, tuple[int, int]] = {}
    for kind, words in (
        ("connections", r"connections? that it has leased"),
        ("uses", r"leases? and calls would"),
    ):
        counted = re.search(rf"(None|[\d,]+) +of +([\d,]+) +{words}", text)
        assert counted is not None, text
        shown[kind] = (0 if counted[1] == "None" else int(counted[1]), int(counted[2]))
    return shown


def hidden(page: str) -> dict[str, str]:
    """The fields of the form that saves what is shown."""
    form = page[: page.index("Save the permit")]
    form = form[form.rindex("<form") :]
    fields = {
        name: html.unescape(value)
        for name, value in re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', form)
    }
    return {name: value for name, value in fields.items() if name != "csrf"}


async def previewed(browser: ConsoleBrowser, path: str, **fields: str) -> str:
    answer = await browser.send(path, **fields)
    assert (answer.status_code, "not saved yet" in answer.text) == (200, True), answer.text
    return answer.text


async def test_the_numbers_before_saving_are_what_the_judge_answers_afterwards(api: Api):
    _, key = await leased(api)
    browser, _ = await a_browser(api)
    page = await previewed(browser, ONLY, **USE, scope_ceiling="read_user")
    assert numbers(page) == {"connections": (1, 2), "uses": (2, 5)}
    for shown in (
        "May get access tokens of crm, for every subject, with no more than read_user.",
        "bob at crm",
    ):
        assert shown in page
    assert "Until now: May get access tokens of every integration, for every subject." in page
    assert await api.records(AuditAction.PERMIT_PUT) == [], "nothing is changed before"
    assert (await api.lease(key, subject="bob")).status_code == 200
    saved = await browser.send(ONLY, **hidden(page))
    assert saved.headers["location"] == "/console/apps/sync?done=permit-saved"
    answers = [
        (await api.lease(key, subject=subject)).status_code for subject in ("ann", "bob", "ann", "bob", "ann")
    ]
    assert (answers.count(403), len(answers)) == (2, 5)
    (record,) = await api.records(AuditAction.PERMIT_PUT)
    assert (record.context.by, record.detail["scope_ceiling"]) == ("app:boss", ["read_user"])


async def called(api: Api, connection: Connection, app: str) -> None:
    """What a gateway records of each call."""
    row, at = await api.app_named(app), api.clock.now() - timedelta(minutes=5)
    async with api.worker.write() as tx:
        for number, line in enumerate(CALLS):
            detail = {"app": row.id, "generation": 1, "call": str(number), "request": line, "permit": "only"}
            context, action = RequestContext(by=f"app:{app}"), AuditAction.PROXY_CALLED
            await audit.append(
                tx,
                AuditEntry(
                    tenant=TENANT, at=at, action=action, object=connection.id, context=context, detail=detail
                ),
            )


def asked(line: str) -> dict[str, str]:
    """A call as `GET /v1/access/explain` has it."""
    method, path, *message = line.split(" ")
    if path != "/mcp":
        return {"method": method, "path": path}
    return {"tool": message[1]} if len(message) > 1 else {}


@pytest.mark.parametrize(
    "changed",
    [
        {"methods": "get", "paths": "/user/**"},
        {"methods": "GET HEAD"},
        {"paths": "/user/repos\n/orgs/*/members"},
        {"tools": "search"},
        {"tools": "se*\ndelete_*"},
        {"effect": "deny", "methods": "DELETE"},
        {"effect": "deny", "tools": "delete_*"},
        {"effect": "deny", "methods": "DELETE", "observe": "yes"},
    ],
)
async def test_calls_that_would_be_refused_are_those_that_the_judge_refuses_then(
    api: Api, changed: dict[str, str]
):
    (ann, *_), _ = await leased(api, Action.TOKEN, Action.PROXY)
    await called(api, ann, "sync")
    browser, admin = await a_browser(api)
    fields = {**USE, "actions": "proxy", **changed}
    if changed.get("effect") == "deny":
        path, fields = NEW, {**fields, "name": "never"}
    else:  # leases by another permit, so that the calls alone are at stake
        put = await api.call(
            "PUT", "/v1/apps/sync/permits/leases", admin, json={"integration": "crm", "actions": ["token"]}
        )
        assert put.status_code == 201
        path = ONLY
    page = await previewed(browser, path, **fields)
    lost, judged = numbers(page)["uses"]
    assert judged == len(CALLS) + 5
    assert (await browser.send(path, **hidden(page))).status_code == 303
    refused = []
    for line in CALLS:
        if (
            line == "POST /mcp initialize"
        ):  # `explain` asks about tools: the protocol's own messages always pass
            continue
        query = {"app": "sync", "connection": ann.id, "action": "proxy", **asked(line)}
        answer = await api.get("/v1/access/explain", admin, params=query)
        assert answer.status_code == 200, answer.text
        refused += [line] if not answer.json()["allowed"] else []
    denies = changed.get("effect") == "deny"
    starts = not denies and ("paths" in changed or "methods" in changed)  # whether no session of MCP begins
    assert lost == len(refused) + starts, refused
    for line in refused:
        assert html.escape(line) in page
    assert (lost == 0) is (changed.get("observe") == "yes" or not refused)


async def test_a_permit_is_removed_by_its_name_after_its_loss_was_shown(api: Api):
    _, key = await leased(api)
    browser, _ = await a_browser(api)
    page = await browser.page(f"{ONLY}/remove")
    assert numbers(page) == {"connections": (2, 2), "uses": (5, 5)}
    assert "May get access tokens of every integration" in page
    refused = await browser.send(f"{ONLY}/remove", confirm="sync")
    assert (refused.status_code, 'id="confirm-problem"' in refused.text) == (400, True)
    assert (await api.lease(key, subject="ann")).status_code == 200
    answer = await browser.send(f"{ONLY}/remove", confirm="only")
    assert answer.headers["location"] == "/console/apps/sync?done=permit-removed"
    for subject in ("ann", "bob"):
        assert (await api.lease(key, subject=subject)).status_code in (403, 404)


async def test_what_would_be_lost_is_a_months_and_an_address_that_isnt_recorded_stays_as_it_was(api: Api):
    await leased(api)
    browser, admin = await a_browser(api)
    sources = {"integration": "*", "actions": ["token"], "sources": ["0.0.0.0/0", "::/0"]}
    assert (await api.call("PUT", "/v1/apps/sync/permits/only", admin, json=sources)).status_code == 200
    kept = {**USE, "sources": "0.0.0.0/0\n::/0"}
    assert numbers(await previewed(browser, ONLY, **kept))["connections"] == (0, 2)
    assert numbers(await previewed(browser, ONLY, **USE, sources="192.0.2.0/24"))["connections"] == (2, 2)
    api.clock.advance(timedelta(days=31).total_seconds())
    browser = await at_console(api, await api.app_with("later", Action.ADMIN))
    assert "it has leased nothing in this time" in await browser.page(f"{ONLY}/remove")


async def test_a_new_permit_says_what_it_reaches_and_every_field_is_kept(api: Api):
    rows, _ = await leased(api)
    browser, admin = await a_browser(api)
    typed = {
        **{"name": "calls", "effect": "allow", "integration": "crm", "actions": "proxy", "priority": "high"},
        **{"subjects": "ann\r\nb*", "connections": rows[0].id, "methods": "get post", "paths": "/user/**"},
        **{
            "call_approval": "yes",
            "sources": "192.0.2.0/24",
            "expires_at": "2027-03-01T12:00",
            "provider": "gitlab",
        },
        **{"scope_ceiling": "read_user, api", "purpose": "<b>sync", "owner": "sales", "reason": "ticket 7"},
    }
    page = await previewed(browser, NEW, **typed)
    words = (
        "May send GET and POST requests to /user/** of crm with the provider gitlab, on 1 named connection"
    )
    assert words in page
    assert ("once a person has approved that very call" in page, "<b>sync" in page) == (True, False)
    assert f'/console/connections/{rows[0].id}">ann at crm' in page
    answer = await browser.send(NEW, **hidden(page))
    assert answer.status_code == 303, answer.text
    made = (await api.get("/v1/apps/sync/permits/calls", admin)).json()
    expected = {
        **{
            "subjects": ["ann", "b*"],
            "connections": [rows[0].id],
            "methods": ["GET", "POST"],
            "paths": ["/user/**"],
        },
        **{"call_approval": True, "sources": ["192.0.2.0/24"], "provider": "gitlab", "priority": "high"},
        **{
            "scope_ceiling": ["read_user", "api"],
            "purpose": "<b>sync",
            "owner": "sales",
            "reason": "ticket 7",
        },
        **{"expires_at": "2027-03-01T12:00:00Z", "exact_scopes": False, "effect": "allow", "mode": "enforce"},
    }
    assert {name: made[name] for name in expected} == expected
    shown = await browser.page("/console/apps/sync") + await browser.page("/console/apps/sync/reach")
    for part in (
        "<code>GET</code>",
        "<code>/user/**</code>",
        "<code>192.0.2.0/24</code>",
        "a person approves each call",
    ):
        assert shown.count(part) == 2, part
    form = await browser.page("/console/apps/sync/permits/calls")
    again = await previewed(browser, "/console/apps/sync/permits/calls", **as_typed(form))
    assert (await browser.send("/console/apps/sync/permits/calls", **hidden(again))).status_code == 303
    assert {
        name: (await api.get("/v1/apps/sync/permits/calls", admin)).json()[name] for name in expected
    } == expected


def as_typed(page: str) -> dict[str, str]:
    """What a browser sends of a form that nobody has touched."""
    form = page[page.index('name="csrf"') :]
    if 'action="/console/apps' in page:
        form = page[page.index('<form class="panel') :]
    fields: dict[str, str] = {}
    for name, value in re.findall(r'<input id="[^"]+" name="([^"]+)"[^>]*? value="([^"]*)"', form):
        fields[name] = html.unescape(value)
    for name, value in re.findall(r'<textarea id="[^"]+" name="([^"]+)"[^>]*>\n?([^<]*)</textarea>', form):
        fields[name] = html.unescape(value)
    for name, body in re.findall(r'<select id="[^"]+" name="([^"]+)"[^>]*>(.*?)</select>', form, re.S):
        chosen = re.search(r'<option value="([^"]*)" selected', body)
        fields[name] = html.unescape(chosen[1]) if chosen else ""
    for box in re.findall(r'<input type="checkbox"[^>]*>', form):
        if " checked" in box:
            name, value = re.findall(r'(?:name|value)="([^"]*)"', box)
            fields[name] = f"{fields[name]} {value}" if name in fields else value
    return fields


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"name": "A b"}, "name"),
        ({"name": "only"}, "name"),
        ({"actions": ""}, "actions"),
        ({"actions": "fly"}, "actions"),
        ({"subjects": ""}, "subjects"),
        ({"subjects": "a*b"}, "subjects"),
        ({"connections": "con_1"}, "connections"),
        ({"sources": "10.0.0.0/40"}, "sources"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"actions": "proxy", "methods": "G-T"}, "methods"),
        ({"actions": "proxy", "paths": "user"}, "paths"),
        ({"scope_ceiling": "a", "no_scopes": "yes"}, "scope_ceiling"),
        ({"integration": ""}, "integration"),
        ({"priority": "most"}, "priority"),
        ({"effect": "maybe"}, "effect"),
        ({"methods": "GET"}, ""),  # of the whole form: they are of proxy alone
        ({"observe": "yes"}, ""),
        ({"effect": "deny", "scope_ceiling": "a"}, ""),
    ],
)
async def test_a_permit_that_is_wrong_is_refused_at_its_field_with_what_was_typed(
    api: Api, typed: dict[str, str], field: str
):
    await leased(api)
    browser, _ = await a_browser(api)
    answer = await browser.send(NEW, **{"name": "next", **USE, "purpose": "kept as typed", **typed})
    assert answer.status_code == (409 if typed.get("name") == "only" else 400), answer.text
    assert "kept as typed" in answer.text
    assert (f'id="{field}-problem"' if field else 'class="alert" role="alert"') in answer.text
    assert await api.records(AuditAction.PERMIT_PUT) == []


async def test_a_permit_that_was_changed_meanwhile_is_looked_at_again(api: Api):
    await leased(api)
    browser, admin = await a_browser(api)
    page = await previewed(browser, ONLY, **USE)
    changed = {"integration": "crm", "subjects": ["ann"], "actions": ["token"]}
    assert (await api.call("PUT", "/v1/apps/sync/permits/only", admin, json=changed)).status_code == 200
    answer = await browser.send(ONLY, **hidden(page))
    assert (answer.status_code, "was changed meanwhile" in answer.text) == (409, True)
    assert len(await api.records(AuditAction.PERMIT_PUT)) == 1


async def test_an_app_gives_itself_no_token_and_four_eyes_hold(api: Api):
    await api.integration()
    browser, _ = await a_browser(api)
    mine = "/console/apps/boss/new/permit"
    page = await previewed(browser, mine, name="use", **USE)
    answer = await browser.send(mine, **hidden(page))
    assert (answer.status_code, "not_permitted" in answer.text) == (403, True)
    await api.app_with("sync")
    api.parts.settings.four_eyes = True
    fields = hidden(await previewed(browser, NEW, name="use", **USE))
    waits = await browser.send(NEW, **fields)
    assert (waits.status_code, "approval_required" in waits.text) == (403, True)
    second = await at_console(api, await api.app_with("other", Action.ADMIN))
    page = await second.page("/console/approvals")
    assert f"POST {NEW}" in page
    (path,) = re.findall(r'action="(/console/approvals/apr_\w+)"', page)
    assert (await second.send(path)).status_code == 303
    assert (await browser.send(NEW, **fields)).status_code == 303


async def test_who_may_takes_method_path_and_tool(api: Api):
    (ann, *_), _ = await leased(api, Action.TOKEN)
    browser, admin = await a_browser(api)
    calls: dict[str, Any] = {"integration": "crm", "actions": ["proxy"]}
    for name, limits in (
        ("reads", {"methods": ["GET"], "paths": ["/user/**"]}),
        ("tools", {"tools": ["search"]}),
    ):
        put = await api.call("PUT", f"/v1/apps/sync/permits/{name}", admin, json={**calls, **limits})
        assert put.status_code == 201
    base = f"/console/access?app=sync&connection={ann.id}&action=proxy"
    for query, allowed in (
        ("&method=get&path=/user/repos", True),
        ("&method=POST&path=/user/repos", False),
        ("&method=GET&path=/orgs", False),
        ("&tool=search", True),
        ("&tool=delete", False),
    ):
        page = await browser.page(base + query)
        assert ("The permits allow it" in page) is allowed, query
    assert "<code>GET /user/repos</code>" in await browser.page(f"{base}&method=get&path=/user/repos")
    for query in (
        "&method=GET",
        "&path=/a",
        "&method=GET&path=a",
        "&method=G-&path=/",
        "&address=x",
        "&method=GET&path=/&tool=x",
    ):
        assert (await browser.browser.get(base + query)).status_code == 400, query
    token = base.replace("proxy", "token")
    assert (await browser.browser.get(f"{token}&method=GET&path=/")).status_code == 400
