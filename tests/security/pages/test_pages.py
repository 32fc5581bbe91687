"""The subject's pages: nothing from elsewhere, no framing, no redirector, and every forged form refused.

What is under /v1 takes a key or a signature, which no browser sends by itself: tests/security/isolation.
"""

import re

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.ids import ConnectionId
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.visitor import Visitor, consent_of

RETURN = "https://app.example/done"


async def connect_url(api: Api, **body) -> str:
    key = await api.app_for("<i>Sneaky</i>" if body.pop("sneaky", False) else "asker", Action.CONNECT,
                             return_to=(RETURN,))  # fmt: skip
    made = await api.post("/v1/connections", key, {"integration": "crm", "subject": "user-1", **body})
    assert made.status_code == 201, made.text
    return made.json()["connect_url"]


async def test_the_page_says_who_asks_for_what(api: Api):
    page = await Visitor(api).open(
        await connect_url(api, subject="maria@example.org", scopes=["openid", "api"])
    )
    assert page.status_code == 200
    for said in ("asker", "GitLab", "crm", "maria@example.org", "Know who you are", "openid", "api"):
        assert said in page.text


async def test_what_callers_wrote_is_escaped(api: Api):
    page = await Visitor(api).open(await connect_url(api, subject="<script>alert(1)</script>", sneaky=True))
    assert "<script" not in page.text
    assert "<i>" not in page.text
    assert "&lt;script&gt;" in page.text


async def test_csp_lets_nothing_in_from_elsewhere_and_the_cookie_is_bound_to_this_host(api: Api):
    page = await Visitor(api).open(await connect_url(api, return_to=RETURN))
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "img-src": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "<script" not in page.text
    assert "style=" not in page.text
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page.text)) == {"/static/evergrant.css"}
    assert (await api.get("/static/evergrant.css")).headers["content-type"].startswith("text/css")
    cookie = page.headers["set-cookie"]
    assert cookie.startswith("__Host-evergrant=")
    assert {part.strip().lower() for part in cookie.split(";")[1:]} == {
        "httponly", "secure", "path=/", "samesite=lax"
    }  # fmt: skip


async def test_plain_http_on_loopback_has_a_cookie_of_another_name(tmp_path):
    async with running_api(tmp_path, public_url="http://127.0.0.1:8480") as api:
        page = await Visitor(api).open(await connect_url(api))
        assert page.headers["set-cookie"].startswith("evergrant-dev=")
        assert "secure" not in page.headers["set-cookie"].lower()


async def test_looking_changes_nothing(api: Api):
    """Link previews send GETs, any number of them, from anywhere."""
    url = await connect_url(api)
    for _ in range(3):
        assert (await Visitor(api).open(url)).status_code == 200
    assert "Taking you to" in (await Visitor(api).go_on(url)).text


async def test_a_link_begun_in_one_browser_is_refused_in_another(api: Api):
    """The subject who starts is the one who finishes."""
    url = await connect_url(api)
    visitor, other = Visitor(api), Visitor(api)
    token = await other.csrf(url)
    assert "Taking you to" in (await visitor.go_on(url)).text
    pressed = await other.browser.post(url, data={"csrf": token})  # a good form, too late
    for answer in (pressed, await other.open(url)):
        assert (answer.status_code, "another browser" in answer.text) == (400, True)
    assert "Taking you to" in (await visitor.go_on(url)).text


async def test_a_link_is_no_engine_for_requests(api: Api):
    """Each click has a worker ask the provider, where requests are pushed (RFC 9126) or credentials
    are got beforehand (RFC 5849): who holds a link could do nothing else all day."""
    url, visitor = await connect_url(api), Visitor(api)
    assert "Taking you to" in (await visitor.go_on(url)).text
    consent = await consent_of(api, url)
    async with api.worker.write() as tx:
        while consent.revision < 100:
            consent = await tx.consents.replace(consent, expected=consent.revision)
    assert "Taking you to" in (await visitor.go_on(url)).text
    refused = await visitor.go_on(url)
    assert (refused.status_code, "consent_expired" in refused.text) == (409, True)


async def test_links_that_are_unknown_expired_or_of_a_revoked_connection(api: Api):
    unknown = await Visitor(api).open("/connect/nobody-knows-this")
    assert (unknown.status_code, "not_found" in unknown.text) == (404, True)
    url = await connect_url(api)
    async with api.worker.read() as tx:
        (connection,) = await tx.connections.page(TENANT)
    api.clock.advance(3600)
    expired = await Visitor(api).open(url)
    assert (expired.status_code, "consent_expired" in expired.text) == (409, True)
    api.clock.advance(-3600)
    connection = await api.row(TENANT, ConnectionId(connection.id))
    await api.change(connection, lambda it: it.revocation_requested("left", api.clock.now()))
    revoked = await Visitor(api).open(url)
    assert (revoked.status_code, "connection_revoked" in revoked.text) == (409, True)


@pytest.mark.parametrize(
    "url",
    [
        "https://app.example/done/",
        "https://app.example/done?x=1",
        "https://app.example/",
        "https://app.example.evil.example/done",
        "https://APP.example/done",
        "//evil.example",
        "/\\evil.example",
        "https://app.example@evil.example/done",
        "https://evil.example/#https://app.example/done",
        "javascript:alert(1)",
        "data:text/html,x",
        "http://app.example/done",
    ],
)
async def test_rfc9700_4_11_no_open_redirector(api: Api, url: str):
    """Compared character by character with the app's list."""
    key = await api.app_for("asker", Action.CONNECT, return_to=(RETURN,))
    body = {"integration": "crm", "subject": "user-1", "return_to": url}
    answer = await api.post("/v1/connections", key, body)
    assert (answer.status_code, answer.json()["field"]) == (400, "return_to")
    async with api.worker.read() as tx:
        assert await tx.connections.page(TENANT) == []


@pytest.mark.parametrize(
    "url",
    ["//evil", "\\evil", "https://u@h/", "javascript:x", "https://h/#f", "http://h/", "https:///x",
     "https://h /", "https://h/\n", "https://h:99999/", "ftp://h/", "", "https://h/é"],
)  # fmt: skip
async def test_rfc9700_4_11_what_can_not_be_listed(api: Api, url: str):
    admin = await api.app_with("boss", Action.ADMIN)
    answer = await api.call("PUT", "/v1/apps/a", admin, json={"return_to": [url]})
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"].startswith("return_to")
    assert (await api.call("PUT", "/v1/apps/a", admin, json={"return_to": [RETURN]})).status_code == 201


# --- cross-site request forgery: every form of our pages, found in the description ------------

READING = {"get", "head", "options"}
# Not from a page of ours: the state, which is of one browser, is what can't be forged there.
# test_callback.py and test_implicit.py carry that out.
BROUGHT_BY_STATE = {"/oauth/callback/{integration_id}", "/oauth/callback/{integration_id}/fragment"}
REFUSED = "The form was not sent from this page"
ELSEWHERE = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


def forms(api: Api) -> list[str]:
    """The path of every form: a browser's requests that change something."""
    described = api.app.openapi()["paths"]
    changing = {path for path, operations in described.items() if operations.keys() - READING}
    return sorted(path for path in changing - BROUGHT_BY_STATE if path.startswith("/connect/"))


async def a_link(api: Api, subject: str) -> str:
    key = await api.app_with(f"asks-for-{subject}", Action.CONNECT)
    made = await api.post("/v1/connections", key, {"integration": "crm", "subject": subject})
    return made.json()["connect_url"].removeprefix("https://evergrant.test")


async def rows(api: Api, link: str) -> tuple[Consent, Connection]:
    consent = await consent_of(api, link)
    return consent, await api.row(TENANT, consent.connection_id)


async def test_the_forms_are_found(api: Api):
    assert {"/connect/{link}", "/connect/{link}/choice"} <= set(forms(api))


async def test_csrf_every_form_refuses_every_forged_one_and_changes_nothing(api: Api):
    await api.integration()
    link, another = await a_link(api, "user-1"), await a_link(api, "user-2")
    mine, theirs = Visitor(api), Visitor(api)
    good, of_another_link = await mine.csrf(link), await mine.csrf(another)
    of_another_browser = await theirs.csrf(link)
    before = await rows(api, link)
    for path in forms(api):
        url = path.replace("/connect/{link}", link)
        fields: list[dict[str, str]] = [{}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": "é"}]
        fields += [{"csrf": of_another_link}, {"csrf": of_another_browser}]
        answers = [await mine.browser.post(url, data=it) for it in fields]
        # another site's form comes without a Lax cookie, even if it had the token
        stranger = api.browser()
        answers += [await stranger.post(url, data={"csrf": it}, headers=ELSEWHERE) for it in ("", good)]
        for answer in answers:
            assert (answer.status_code, REFUSED in answer.text) == (400, True), (path, answer.text)
        assert await rows(api, link) == before, path


async def test_csrf_every_form_takes_its_own_page(api: Api):
    """Or the refusals above would be of anything at all."""
    await api.integration()
    for number, path in enumerate(forms(api)):
        link, visitor = await a_link(api, f"user-{number}"), Visitor(api)
        good = await visitor.csrf(link)
        answer = await visitor.browser.post(path.replace("/connect/{link}", link), data={"csrf": good})
        assert REFUSED not in answer.text, path
