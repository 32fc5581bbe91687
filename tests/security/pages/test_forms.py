"""Cross-site request forgery: every form of our pages, found in the description, and every forged one.

What is under /v1 takes a key or a signature, which no browser sends by itself: test_authorization.py.
"""

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from tests.fakes.api import TENANT, Api
from tests.fakes.visitor import Visitor, consent_of

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
    return sorted(path for path in changing - BROUGHT_BY_STATE if not path.startswith("/v1/"))


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
