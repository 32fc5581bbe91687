"""The tenant's own definitions in the console: proposed as text, shown by what they change, decided."""

import json
import re
from typing import Any

import pytest
import yaml

from evergrant_server.core.access import Action
from evergrant_server.core.definition import CheckLevel, CheckResult, Definition, DefinitionState
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.people import ORIGIN

NEW, OWN = "/console/new/definition", "/console/definitions/acme-crm"
ACME: dict[str, Any] = {
    "name": "acme-crm",
    "display_name": "Acme CRM",
    "auth_modes": ["authorization_code"],
    "authorization_endpoint": "https://crm.acme.example/authorize",
    "token_endpoint": "https://crm.acme.example/token",
    "default_scopes": ["read"],
}
HOSTS = CheckResult(check="hosts", level=CheckLevel.WARNING, detail="secrets would go to new.acme.example")


def changes(number: int, done: str = "") -> str:
    return f"{OWN}/changes?version={number}" + (f"&done={done}" if done else "")


async def an_admin(api: Api) -> ConsoleBrowser:
    return await at_console(api, await api.app_with("boss", Action.ADMIN))


async def propose(browser: ConsoleBrowser, **changes: Any) -> str:
    """Where the proposal's form leads."""
    answer = await browser.send(NEW, definition=yaml.safe_dump({**ACME, **changes}))
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


async def version(api: Api, number: int = 1) -> Definition:
    async with api.worker.read() as tx:
        definition = await tx.definitions.version(TENANT, "acme-crm", number)
    assert definition is not None
    return definition


async def checked(api: Api, number: int = 1, *findings: CheckResult, **changes: Any) -> None:
    """What a worker writes after its checks."""
    definition = await version(api, number)
    after = definition.with_checks(findings, api.clock.now()).__replace__(**changes)
    async with api.worker.write() as tx:
        await tx.definitions.replace(after, expected=definition.revision)


async def test_one_is_proposed_as_yaml_as_json_and_as_a_file(api: Api):
    browser = await an_admin(api)
    assert await propose(browser) == changes(1, "proposed")
    assert (await version(api)).document == ACME
    await checked(api, state=DefinitionState.ACTIVE, share=1.0)
    answer = await browser.send(NEW, definition=json.dumps({**ACME, "default_scopes": ["write"]}))
    assert answer.headers["location"] == changes(2, "proposed")
    await checked(api, 2, state=DefinitionState.REJECTED)
    token = await browser.csrf("/console/definitions")
    answer = await browser.browser.post(
        NEW,
        data={"csrf": token, "rollout.shares": "10, 100", "rollout.stage_s": "2", "rollout.most_bad": "20"},
        files={"file": ("acme.yaml", yaml.safe_dump(ACME).encode())},
        headers={"Origin": ORIGIN},
    )
    assert answer.headers["location"] == changes(3, "proposed")
    rollout = (await version(api, 3)).rollout
    assert (rollout.shares, rollout.stage_s, rollout.most_bad) == ((0.1, 1.0), 7200.0, 0.2)
    listed = await browser.page("/console/definitions")
    assert re.findall(r'href="/console/definitions/([\w-]+)"', listed) == ["acme-crm"]
    assert "Version 3" in await browser.page(OWN)


@pytest.mark.parametrize(
    ("field", "typed", "problem"),
    [
        ("definition", "", "Paste a definition"),
        ("definition", "name: [", "is not YAML"),
        ("definition", "- a list", "begins with the members"),
        ("definition", "name: acme-crm", "auth_modes"),
        ("definition", "a: &x [1]\nb: *x", "definition"),
        ("rollout.shares", "100 5", "shares rise"),
        ("rollout.shares", "many", "Use a number"),
        ("rollout.most_bad", "200", ""),
    ],
)
async def test_a_refusal_stands_at_its_field_and_the_text_stays(
    api: Api, field: str, typed: str, problem: str
):
    browser = await an_admin(api)
    answer = await browser.send(NEW, **{"definition": yaml.safe_dump(ACME), field: typed})
    assert answer.status_code == 400
    problem_text = re.search(
        r'<p class="problem" id="(definition|rollout[\w.]*)-problem">([^<]+)</p>', answer.text
    )
    if problem_text is None:
        assert 'role="alert"' in answer.text
        assert problem in answer.text
    else:
        assert problem in problem_text[2]
    assert "acme-crm" in answer.text or field == "definition"
    async with api.worker.read() as tx:
        assert await tx.definitions.names(TENANT) == []


async def test_its_differences_are_plain_rows(api: Api):
    browser = await an_admin(api)
    await propose(browser)
    await checked(api, state=DefinitionState.ACTIVE, share=1.0)
    await propose(browser, token_endpoint="https://new.acme.example/token", default_scopes=["read", "write"])
    page = await browser.page(changes(2))
    rows = re.findall(
        r'data-label="Field">([^<]+)</th>\s*<td[^>]*><div>(.*?)</div></td>\s*<td[^>]*><div>(.*?)</div>', page
    )
    assert rows == [
        ("default scopes", "read", "read write"),
        ("token endpoint", "https://crm.acme.example/token", "https://new.acme.example/token"),
    ]
    assert (await browser.browser.get(changes(9))).status_code == 404
    assert (await browser.browser.get(f"{OWN}/changes?version=x")).status_code == 404


async def test_new_hosts_are_accepted_or_it_isnt_approved(api: Api):
    browser = await an_admin(api)
    await propose(browser)
    await checked(api, 1, HOSTS)
    page = await browser.page(changes(1))
    assert "secrets would go to new.acme.example" in page
    refused = await browser.send(f"{OWN}/approve", version="1")
    assert (refused.status_code, 'id="accept_hosts-problem"' in refused.text) == (400, True)
    assert (await version(api)).approved is None
    answer = await browser.send(f"{OWN}/approve", version="1", accept_hosts="yes", reason="read it")
    assert answer.headers["location"] == changes(1, "approved")
    decided = await version(api)
    assert (decided.approved, decided.decided_by, decided.reason) == (True, "app:boss", "read it")
    assert (await browser.send(f"{OWN}/approve", version="1", accept_hosts="yes")).status_code == 400


async def test_it_is_rejected_with_a_reason_and_a_staged_one_is_rolled_back(api: Api):
    browser = await an_admin(api)
    await propose(browser)
    await checked(api)
    refused = await browser.send(f"{OWN}/reject", version="1")
    assert (refused.status_code, 'id="reason-problem"' in refused.text) == (400, True)
    answer = await browser.send(f"{OWN}/reject", version="1", reason="wrong scopes")
    assert answer.headers["location"] == changes(1, "rejected")
    assert (await version(api)).approved is False
    early = await browser.send(f"{OWN}/roll-back", version="1", reason="too early")
    assert early.status_code == 400
    await checked(api, state=DefinitionState.STAGED, share=0.05)
    assert "It serves 5%" in await browser.page(changes(1))
    answer = await browser.send(f"{OWN}/roll-back", version="1", reason="refreshes fail")
    assert answer.headers["location"] == changes(1, "rolled-back")


@pytest.mark.parametrize("act", ["approve", "reject", "roll-back", ""])
async def test_an_auditor_an_old_login_and_another_sites_form_decide_nothing(api: Api, act: str):
    browser = await an_admin(api)
    await propose(browser)
    await checked(api)
    before = await version(api)
    path = f"{OWN}/{act}" if act else NEW
    fields = {"version": "1", "reason": "so", "definition": yaml.safe_dump({**ACME, "name": "other"})}
    auditor = await person_at_console(api, PersonRole.AUDITOR)
    assert "<form method" not in (await auditor.page(changes(1))).partition("<main")[2]
    assert (await auditor.send(path, **fields)).status_code == 403
    stranger = await browser.browser.post(path, data={**fields, "csrf": "0" * 64}, headers={"Origin": ORIGIN})
    assert stranger.status_code == 400
    if act == "approve":
        person = await person_at_console(api, PersonRole.TENANT_ADMIN)
        api.clock.advance(360)
        answer = await person.send(path, **fields)
        assert (answer.status_code, "step_up_required" in answer.text) == (403, True)
    assert await version(api) == before
    async with api.worker.read() as tx:
        assert await tx.definitions.names(TENANT) == ["acme-crm"]
