"""Imports in the console: rehearsed first, kept sealed, ordered, with progress and the rows to repair."""

import asyncio
import json
import re

import pytest
from sqlalchemy import text

from evergrant_server.api.transfer import imports
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.people import ORIGIN

IMPORTS = "/console/imports"
CSV = (
    "integration,subject,access_token,refresh_token,expires,scopes\n"
    "crm,ann,at-canary-1,rt-canary-1,unknown,read_user api\n"
    "\n"
    "absent,bob,at-canary-2,rt-canary-2,unknown,\n"
    "crm,cleo,at-canary-3,rt-canary-3,unknown,\n"
)
LINES = "\n".join(
    json.dumps({"subject": name, "access_token": f"at-canary-{name}", "refresh_token": "rt"})
    for name in ("ann", "bob")
)


async def an_admin(api: Api) -> ConsoleBrowser:
    await api.integration("crm")
    return await at_console(api, await api.app_with("boss", Action.ADMIN))


async def rehearsed(browser: ConsoleBrowser, grants: str = CSV, **fields: str) -> str:
    """The path of the rehearsal's page."""
    answer = await browser.send(IMPORTS, grants=grants, **fields)
    assert answer.status_code == 303, answer.text
    assert re.fullmatch(rf"{IMPORTS}/imp_[0-9a-z]{{22}}", answer.headers["location"])
    return answer.headers["location"]


async def connections(api: Api) -> dict[str, Connection]:
    records = await api.records(AuditAction.CONNECTION_IMPORTED)
    rows = [await api.row(TENANT, ConnectionId(record.object)) for record in records]
    return {connection.subject: connection for connection in rows}


def counted(page: str, term: str) -> int:
    number = re.search(rf"<dt>{term}</dt><dd>([\d,]+)", page)
    assert number is not None, page
    return int(number[1])


async def test_the_rehearsal_reports_first_and_the_order_imports_what_it_accepted(api: Api):
    browser = await an_admin(api)
    path = await rehearsed(browser)
    page = await browser.page(path)
    assert "nothing is imported yet" in page
    assert (counted(page, "Would be imported"), counted(page, "Are invalid")) == (2, 1)
    assert "There is no such integration." in page
    assert await connections(api) == {}
    refused = await browser.send(f"{path}/begin")
    assert (refused.status_code, 'id="refresher_stopped-problem"' in refused.text) == (400, True)
    assert await connections(api) == {}
    for _ in range(2):  # a double click imports once
        answer = await browser.send(f"{path}/begin", refresher_stopped="yes")
        assert (answer.status_code, answer.headers["location"]) == (303, path)
    made = await connections(api)
    assert sorted(made) == ["ann", "cleo"]
    page = await browser.page(path)
    assert (counted(page, "Wait for a worker"), counted(page, "Verified by a refresh")) == (2, 0)
    assert "hx-trigger" in page


async def killed(*_: object) -> None:
    raise ProcessLookupError("the API's process was killed here")


async def test_a_double_click_and_an_order_that_was_cut_off_report_what_was_imported(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    browser = await an_admin(api)
    path = await rehearsed(browser)
    orders = [browser.send(f"{path}/begin", refresher_stopped="yes") for _ in range(2)]
    assert {answer.status_code for answer in await asyncio.gather(*orders)} == {303}
    assert sorted(await connections(api)) == ["ann", "cleo"]
    assert counted(await browser.page(path), "Wait for a worker") == 2

    path = await rehearsed(browser, CSV.replace("ann", "dan").replace("cleo", "eve"))
    monkeypatch.setattr(imports, "_own_outcomes", killed)
    assert (await browser.send(f"{path}/begin", refresher_stopped="yes")).status_code == 500
    monkeypatch.undo()
    assert sorted(await connections(api)) == ["ann", "cleo", "dan", "eve"]
    page = await browser.page(path)
    assert (counted(page, "Would be imported"), "but not finished: import again" in page) == (2, True)
    await browser.send(f"{path}/begin", refresher_stopped="yes")
    assert counted(await browser.page(path), "Wait for a worker") == 2


async def test_progress_is_what_became_of_each_connection(api: Api):
    browser = await an_admin(api)
    path = await rehearsed(browser)
    await browser.send(f"{path}/begin", refresher_stopped="yes")
    made = await connections(api)
    await api.change(made["ann"], lambda row: row.__replace__(state=LifecycleState.ACTIVE, generation=2))
    await api.change(
        made["cleo"],
        lambda row: row.__replace__(state=LifecycleState.NEEDS_REAUTH, reason=ErrorCode.GRANT_REJECTED),
    )
    page = await browser.page(path)
    assert counted(page, "Verified by a refresh") == 1
    assert counted(page, "Refused by the provider") == 1
    assert counted(page, "Wait for a worker") == 0
    assert f'href="/console/connections/{made["cleo"].id}"' in page
    assert "grant_rejected" in page
    assert "hx-trigger" not in page


async def test_what_is_pasted_is_sealed_sent_back_by_no_page_and_gone_after_the_order(api: Api):
    browser = await an_admin(api)
    path = await rehearsed(browser)

    async def stored() -> str:
        async with api.worker.read() as tx:
            rows = await tx.connection.execute(text("SELECT * FROM idempotency"))
            return str([*rows])

    pages = [await browser.page(path), await browser.page(IMPORTS), await stored()]
    assert path.rpartition("/")[2] in pages[1]
    assert "canary" not in "".join(pages)
    async with api.worker.read() as tx:
        app = await api.app_named("boss")
        kept = await tx.idempotency.find(TENANT, app.id, f"import {path.rpartition('/')[2]}")
    assert kept is not None
    assert "at-canary-1" in kept.body
    await browser.send(f"{path}/begin", refresher_stopped="yes")
    async with api.worker.read() as tx:
        kept = await tx.idempotency.find(TENANT, app.id, f"import {path.rpartition('/')[2]}")
    assert kept is not None
    assert "canary" not in kept.body
    bad = await browser.send(IMPORTS, grants=CSV + "crm,dan,at-canary-9")
    assert (bad.status_code, "canary" in bad.text) == (400, False)


async def test_a_rehearsal_is_forgotten_by_hand_and_after_an_hour(api: Api):
    browser = await an_admin(api)
    path = await rehearsed(browser)
    answer = await browser.send(f"{path}/forget")
    assert answer.headers["location"] == f"{IMPORTS}?done=forgotten"
    late = await rehearsed(browser)
    api.clock.advance(3590)
    assert (await browser.browser.get(late)).status_code == 200
    stranger = await at_console(api, await api.app_with("second", Action.ADMIN))
    assert (await stranger.browser.get(late)).status_code == 404, "another app's"
    api.clock.advance(10)
    browser = await at_console(api, await api.app_with("third", Action.ADMIN))
    for old in (path, late):
        assert (await browser.send(f"{old}/begin", refresher_stopped="yes")).status_code == 404
    assert await connections(api) == {}


async def test_json_lines_a_list_a_file_and_what_the_form_says_of_all_rows(api: Api):
    browser = await an_admin(api)
    page = await browser.page(await rehearsed(browser, LINES))
    assert counted(page, "Are invalid") == 2
    defaults = {"integration": "crm", "without_expiry": "unknown"}
    page = await browser.page(await rehearsed(browser, LINES, **defaults))
    assert counted(page, "Would be imported") == 2
    as_list = json.dumps([json.loads(line) for line in LINES.splitlines()])
    assert (
        counted(await browser.page(await rehearsed(browser, as_list, **defaults)), "Would be imported") == 2
    )
    semicolons = CSV.replace(",", ";")
    assert counted(await browser.page(await rehearsed(browser, semicolons)), "Would be imported") == 2
    answer = await browser.browser.post(
        IMPORTS,
        data={"csrf": await browser.csrf(IMPORTS)},
        files={"file": ("grants.csv", b"\xef\xbb\xbf" + CSV.encode())},
        headers={"Origin": ORIGIN},
    )
    assert counted(await browser.page(answer.headers["location"]), "Would be imported") == 2


@pytest.mark.parametrize(
    ("grants", "problem"),
    [
        ("", "Paste the grants"),
        ("a,b\n1,2", "names the columns"),
        ("subject,subject\n1,2", "each once"),
        ("subject,access_token\nann", "Line 2 has 1 cells"),
        ('subject,access_token\n"ann', "is not valid CSV"),
        ('{"subject": "ann"}\n{', "Line 2 is not valid JSON"),
        ("[1, 2", "is not valid JSON"),
        ("[]", "1 to 1000 rows"),
        ("[" + "[" * 3000, "is not valid JSON"),
        ("subject\n" + "ann\n" * 1001, "1 to 1000 rows"),
    ],
)
async def test_what_cant_be_read_is_refused_by_its_line(api: Api, grants: str, problem: str):
    browser = await an_admin(api)
    answer = await browser.send(IMPORTS, grants=grants)
    problem_text = re.search(r'<p class="problem" id="grants-problem">([^<]+)</p>', answer.text)
    assert problem_text is not None, answer.text
    assert (answer.status_code, problem in problem_text[1]) == (400, True)


async def test_a_member_that_is_given_twice_is_invalid_and_stays_so(api: Api):
    browser = await an_admin(api)
    twice = (
        '{"integration": "crm", "subject": "ann", "subject": "bob", "access_token": "x", "expires_in": 60}'
    )
    path = await rehearsed(browser, twice)
    assert counted(await browser.page(path), "Are invalid") == 1
    await browser.send(f"{path}/begin", refresher_stopped="yes")
    assert await connections(api) == {}


@pytest.mark.parametrize("act", ["", "/{id}/begin", "/{id}/forget"])
async def test_an_auditor_and_another_sites_form_import_nothing(api: Api, act: str):
    browser = await an_admin(api)
    kept = await rehearsed(browser)
    path = IMPORTS + act.replace("{id}", kept.rpartition("/")[2])
    fields = {"grants": CSV, "refresher_stopped": "yes"}
    auditor = await person_at_console(api, PersonRole.AUDITOR)
    assert "<textarea" not in await auditor.page(IMPORTS)
    assert (await auditor.send(path, **fields)).status_code == 403
    stranger = await browser.browser.post(path, data={**fields, "csrf": "0" * 64}, headers={"Origin": ORIGIN})
    assert stranger.status_code == 400
    assert await connections(api) == {}
    assert (await browser.browser.get(kept)).status_code == 200, "it is kept"
