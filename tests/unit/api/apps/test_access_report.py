"""`GET /v1/access`: every permit with what it reaches and when its app was last used, as JSON and as CSV."""

import csv
from typing import Any

import pytest
from sqlalchemy import update

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.permits import PermitRow
from tests.fakes.api import OTHER, TENANT, Api

REPORT = "/v1/access"
UNUSED = {"integration": "*", "actions": ["connect"]}


async def reported(api: Api, admin: str, **asked: Any) -> list[dict]:
    answer = await api.get(REPORT, admin, params=asked)
    assert answer.status_code == 200, answer.text
    return [it for it in answer.json()["items"] if it["app"] != "admin"]


async def put(api: Api, admin: str, app: str, permit: str, **body: Any) -> None:
    answer = await api.call("PUT", f"/v1/apps/{app}/permits/{permit}", admin, json=body)
    assert answer.status_code in (200, 201), answer.text


async def test_each_permit_is_listed_with_what_it_reaches_and_its_last_use(api: Api, admin: str):
    crm, erp = await api.integration(), await api.integration("erp")
    for subject in ("user-1", "user-2", "user-3"):
        await api.active(crm, f"at-{subject}", subject=subject)
    ended = await api.active(crm, "at-4", subject="user-4")
    await api.change(ended, lambda it: it.model_copy(update={"state": LifecycleState.REVOKED}))
    await api.active(erp, "at-5")
    await api.active(await api.integration("crm", tenant=OTHER), "at-6")
    key = await api.app_with("sync", Action.TOKEN, integration="crm", ceiling=("read_user",))
    await api.app_with("idle")
    await put(api, admin, "idle", "everything", **UNUSED)
    await put(
        api, admin, "idle", "some", integration="*", subjects=["user-1", "no"], actions=["token", "proxy"]
    )
    assert [it["app_last_used_at"] for it in await reported(api, admin)] == [None] * 3
    assert (await api.lease(key)).status_code == 200
    found = await reported(api, admin)
    assert found[0] == {
        "app": "idle",
        "app_disabled": False,
        "permit": "everything",
        "effect": "allow",
        "mode": "enforce",
        "integration": "*",
        "provider": "*",
        "subjects": ["*"],
        "connections": None,
        "sources": None,
        "actions": ["connect"],
        "scope_ceiling": None,
        "exact_scopes": False,
        "scopes": None,
        "expires_at": None,
        "purpose": "",
        "owner": "",
        "reason": "",
        "methods": None,
        "paths": None,
        "tools": None,
        "authentic": True,
        "live_connections": 4,
        "last_used_at": None,
        "app_last_used_at": None,
        "call_approval": False,
        "sponsor": None,
        "agent_ends_at": None,
    }
    shown = [(it["app"], it["permit"], it["live_connections"], it["scope_ceiling"]) for it in found]
    assert shown[1:] == [("idle", "some", 2, None), ("sync", "only", 3, ["read_user"])]
    now = api.clock.now().isoformat().replace("+00:00", "Z")
    assert [(it["last_used_at"], it["app_last_used_at"]) for it in found] == [(None, None)] * 2 + [(now, now)]


async def test_connections_are_counted_as_permits_cover_them(api: Api, admin: str):
    crm, erp = await api.integration(), await api.integration("erp", provider="slack")
    made = [await api.active(crm, subject=subject) for subject in ("team-1", "team-%", "TEAM-2", "té-1")]
    made.append(await api.active(erp, subject="team-1"))
    await api.app_with("sync")
    for fields, live in (
        ({"subjects": ["team-*"]}, 3),
        ({"subjects": ["team-%*"]}, 1),
        ({"subjects": ["té*", "TEAM-2"]}, 2),
        ({"subjects": ["te*"], "provider": "gitlab"}, 2),
        ({"provider": "slack"}, 1),
        ({"connections": [made[0].id, made[4].id], "subjects": ["team-*"]}, 2),
        ({"effect": "deny", "connections": [made[0].id]}, 1),
    ):
        await put(api, admin, "sync", "p", **UNUSED | fields)
        (shown,) = await reported(api, admin)
        assert shown["live_connections"] == live, fields


async def test_the_pages_have_every_permit_once(api: Api, admin: str):
    for app in ("a", "a-b", "b"):
        await api.app_with(app)
        for permit in ("p", "p-1", "q"):
            await put(api, admin, app, permit, **UNUSED)
    whole = [(it["app"], it["permit"]) for it in await reported(api, admin)]
    assert len(set(whole)) == 9
    paged, cursor = [], None
    while True:
        page = (
            await api.get(REPORT, admin, params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        ).json()
        paged += [(it["app"], it["permit"]) for it in page["items"] if it["app"] != "admin"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert paged == whole


async def test_a_row_that_was_changed_by_hand_is_marked_and_stops_no_report(api: Api, admin: str):
    await api.app_with("one", Action.TOKEN)
    await api.app_with("two", Action.TOKEN)
    app = await api.app_named("one")
    changed = {"actions": ["token", "of a later version"]}
    async with api.worker.write() as tx:
        mine = columns_equal(PermitRow, tenant=TENANT, app_id=app.id)
        await tx.connection.execute(update(PermitRow).where(mine).values(changed))
    found = {it["app"]: (it["authentic"], it["actions"]) for it in await reported(api, admin)}
    assert found == {"one": (False, changed["actions"]), "two": (True, ["token"])}


FORMULAS = ["=cmd()", "+1", "-1", "@sum", "\uff1d1", 'plain, with "quotes"', "=1 two"]


@pytest.mark.parametrize(
    "headers", [{}, {"Accept": "text/csv"}, {"Accept": "Text/CSV;q=1, application/json"}]
)
async def test_as_csv_no_cell_is_a_formula(api: Api, admin: str, headers: dict[str, str]):
    await api.app_with("sync")
    for number, subject in enumerate(FORMULAS):
        await put(
            api, admin, "sync", f"p{number}", integration="*", subjects=[subject, "b"], actions=["token"]
        )
    text, answers, url = "", 0, f"{REPORT}?limit=3{'' if headers else '&format=csv'}"
    while url:
        answer = await api.get(url, admin, headers=headers)
        assert answer.headers["content-type"].startswith("text/csv; charset=utf-8")
        text, answers = text + answer.text, answers + 1
        url = answer.links.get("next", {}).get("url")
    assert answers == 3
    assert text.startswith('"app","app_disabled",')
    assert '"p0"' in text, "a separator of another program divides no cell"
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    assert [it["permit"] for it in rows] == ["admin", *(f"p{number}" for number in range(len(FORMULAS)))]
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\uff1d")]
    assert [it["subjects"].removeprefix("'").split("\n") for it in rows[1:]] == [[it, "b"] for it in FORMULAS]
    assert [rows[1][name] for name in ("scope_ceiling", "app_last_used_at", "authentic")] == [
        "every scope", "never", "True",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "asked", [{"format": "xml"}, {"limit": 201}, {"cursor": "ü"}, {"cursor": "x" * 2001}, {"limit": 0}]
)
async def test_bad_input(api: Api, admin: str, asked: dict[str, Any]):
    answer = await api.get(REPORT, admin, params=asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_json_is_the_answer_for_any_other_accept(api: Api, admin: str):
    for accept in ("*/*", "application/json, text/csv", "text/csv-schema"):
        answer = await api.get(REPORT, admin, headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json"
    assert (await api.get(f"{REPORT}?format=json", admin, headers={"Accept": "text/csv"})).json()["items"]
