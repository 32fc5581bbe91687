"""What is done from the console: by whom, only from its own forms, and by the functions of the routes."""

import re

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import AccountOption, FollowUp
from evergrant_server.core.people.roles import Person, PersonRole
from evergrant_server.core.people.sessions import PersonSession
from tests.fakes.api import TENANT, Api
from tests.fakes.visitor import Visitor
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.people import ORIGIN

ALL = (Action.TOKEN, Action.CONNECT, Action.ADMIN)
ACTS = ("choose", "reconnect", "refresh", "revoke", "confirm")
LINK = re.compile(r'value="(https://evergrant\.test/connect/[\w-]{43})"')


async def a_console(api: Api, *actions: Action) -> tuple[Connection, ConsoleBrowser]:
    connection, key = await api.active_for("boss", *actions)
    api.link.events = {None: []}
    return connection, await at_console(api, key)


def of(connection: Connection, act: str = "") -> str:
    return f"/console/connections/{connection.id}" + (f"/{act}" if act else "")


async def untouched(api: Api, connection: Connection) -> bool:
    return await api.row(connection.tenant, connection.id) == connection and api.link.asked == []


async def test_revoke_is_confirmed_first_and_is_recorded_with_its_reason(api: Api):
    connection, browser = await a_console(api, Action.ADMIN)
    page = await browser.page(of(connection, "revoke"))
    assert "Revoke for good?" in page
    assert await untouched(api, connection), "the question changes nothing"
    answer = await browser.send(of(connection, "revoke"), reason="left the company")
    assert (answer.status_code, answer.headers["location"]) == (303, of(connection) + "?done=revoked")
    row = await api.row(TENANT, connection.id)
    assert (row.state, row.revoke_reason) == (LifecycleState.REVOKING, "left the company")
    (record,) = await api.records(AuditAction.REVOCATION_REQUESTED)
    assert (record.context.by, record.detail["reason"]) == ("app:boss", "left the company")
    page = await browser.page(answer.headers["location"])
    for said in ("is being revoked", "The revocation is requested", "connection.revocation_requested"):
        assert said in page
    assert "/revoke" not in page


async def test_audit_records_name_the_person_and_the_story_says_who(api: Api):
    connection = await api.active(await api.integration())
    api.link.events = {None: []}
    person = Person(issuer="https://login.example", sub="ann", name="ann@example.com")
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN, person=person)
    assert (await browser.send(of(connection, "revoke"))).status_code == 303
    (record,) = await api.records(AuditAction.REVOCATION_REQUESTED)
    session = PersonSession.model_construct(tenant=TENANT, person=person)
    assert record.context.by == session.by
    assert "ann@example.com" in await browser.page(of(connection))


async def test_a_double_click_refreshes_once(api: Api):
    connection, browser = await a_console(api, Action.ADMIN)
    api.refreshes_with("at-2", "at-3")
    page = await browser.page(of(connection, "refresh"))
    assert 'name="generation" value="1"' in page
    said = [
        (await browser.send(of(connection, "refresh"), generation="1")).headers["location"] for _ in range(2)
    ]
    assert said == [f"{of(connection)}?done=refreshed"] * 2
    assert (await api.row(TENANT, connection.id)).generation == 2


async def test_a_connect_link_is_shown_once_and_leads_to_the_consent(api: Api):
    connection, browser = await a_console(api, *ALL)
    query = {"integration": "crm", "subject": "bob@example.com", "label": "", "scopes": "read_user api"}
    review = await browser.browser.get("/console/connect", params=query)
    assert "Make a connect link for bob@example.com?" in review.text
    assert await api.records(AuditAction.CONNECTION_CREATED) == []
    made = await browser.send("/console/connect", **query)
    link = LINK.findall(made.text)
    assert (made.status_code, len(link)) == (200, 1)
    assert (await Visitor(api).open(link[0])).status_code == 200
    (record,) = await api.records(AuditAction.CONNECTION_CREATED)
    assert record.detail["scopes"] == ["read_user", "api"]
    assert link[0] not in await browser.page(f"/console/connections/{record.object}")

    again = await browser.send(of(connection, "reconnect"))
    assert len(LINK.findall(again.text)) == 1
    assert [it.object for it in await api.records(AuditAction.REAUTHORIZATION_REQUESTED)] == [connection.id]


async def test_the_account_is_chosen_among_those_of_the_grant_and_again_later(api: Api):
    connection, browser = await a_console(api, Action.CONNECT)
    options = tuple(AccountOption(id=f"acc-{n}", label=f"Account <{n}>") for n in (1, 2))
    async with api.worker.write() as tx:
        grant = await tx.grants.get(TENANT, connection.id)
        assert grant is not None
        waits = connection.model_copy(update={"follow_up": FollowUp.CHOOSING})
        saved = await tx.connections.replace(waits, expected=connection.revision)
        await tx.grants.update_facts(saved, grant.model_copy(update={"options": options}))
    page = await browser.page(of(connection))
    assert "choice_required" in page
    page = await browser.page(of(connection, "choose"))
    assert "Account &lt;1&gt;" in page
    assert (await browser.send(of(connection, "choose"), choice="acc-3")).status_code == 400
    assert await api.records(AuditAction.ACCOUNT_CHOSEN) == []
    for choice in ("acc-2", "acc-1"):
        answer = await browser.send(of(connection, "choose"), choice=choice)
        assert answer.headers["location"] == of(connection) + "?done=chosen"
        row = await api.row(TENANT, connection.id)
        assert (row.choice, row.follow_up) == (choice, None)
    assert len(await api.records(AuditAction.ACCOUNT_CHOSEN)) == 2


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {}, {"Origin": ORIGIN}]
)
async def test_csrf_another_sites_form_does_nothing(api: Api, act: str, headers: dict[str, str]):
    connection, browser = await a_console(api, *ALL)
    token = await browser.csrf("/console/connections")
    stranger = await at_console(api, await api.app_with("second", *ALL))
    wrong = await stranger.csrf("/console/connections")
    sent = {"csrf": wrong if headers == {"Origin": ORIGIN} else token}
    answer = await browser.browser.post(of(connection, act), data=sent, headers=headers)
    assert answer.status_code in (400, 403)
    assert await untouched(api, connection)


async def test_an_auditor_reads_and_changes_nothing(api: Api):
    connection = await api.active(await api.integration())
    api.link.events = {None: []}
    browser = await person_at_console(api, PersonRole.AUDITOR)
    page = await browser.page(of(connection))
    assert "Story" in page
    assert not re.search(rf"{of(connection)}/\w+", page), "no button leads to an act"
    for act in ("reconnect", "refresh", "revoke"):
        assert (await browser.browser.get(of(connection, act))).status_code == 403
        assert (await browser.send(of(connection, act))).status_code == 403
    sent = {"integration": "crm", "subject": "x"}
    assert (await browser.send("/console/connect", **sent)).status_code == 403
    assert await untouched(api, connection)


async def test_an_app_that_may_only_lease_sees_its_connections_and_no_story(api: Api):
    connection, browser = await a_console(api, Action.TOKEN)
    page = await browser.page(of(connection))
    assert "The story takes the action" in page
    assert (await browser.send(of(connection, "revoke"))).status_code == 403
    assert await untouched(api, connection)


async def test_no_page_shows_a_token_and_none_takes_words_for_markup(api: Api):
    integration = await api.integration()
    connection = await api.active(integration, "at-hidden", subject="<img src=x onerror=alert(1)>")
    api.link.events = {None: []}
    browser = await at_console(api, await api.app_with("boss", *ALL))
    shown = "".join(
        [await browser.page(it) for it in ("/console/connections", of(connection), of(connection, "revoke"))]
    )
    assert "<img" not in shown
    assert "&lt;img" in shown
    for secret in ("at-hidden", "hush-hush"):
        assert secret not in shown


async def test_csp_allows_our_own_scripts_and_no_inline_one(api: Api):
    connection, browser = await a_console(api, *ALL)
    answers: list[httpx2.Response] = [
        await browser.browser.get(it)
        for it in (of(connection), "/console/connections", "/console/connections/con_0")
    ]
    for answer in (*answers, await ConsoleBrowser(api).browser.get("/console/login")):
        policy = dict(it.strip().split(" ", 1) for it in answer.headers["content-security-policy"].split(";"))
        assert policy == {
            "default-src": "'none'",
            **dict.fromkeys(("script-src", "style-src", "img-src", "connect-src", "form-action"), "'self'"),
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
        }
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script>|<script [^>]*>[^<]|style=|\son\w+=|hx-on|hx-vals|js:", answer.text)
        for name in re.findall(r'(?:src|href)="(/(?:console/)?static/[^"]+)"', answer.text):
            assert (await api.get(name)).status_code == 200, name
