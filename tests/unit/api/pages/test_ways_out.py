"""A link that can't go on ends at a page whose next step works: the app has a new link."""

import asyncio
from urllib.parse import parse_qsl, urlsplit

import pytest

from evergrant_server.console.advice import WayOut, next_step, what_happened
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import ConsentAccount
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, Repairer
from tests.fakes.api import TENANT, Api
from tests.fakes.visitor import Visitor, consent_of
from tests.security.pages.test_callback import ISSUER, an_integration

NEW = {"integration": "crm", "subject": "user-1"}
RETURN = "https://app.example/done"
AGAIN = "Connect again in asker: it gives you a new link."


class Person:
    """A person with a link of the app `asker`, and its browser."""

    def __init__(self, api: Api, key: str, made: dict) -> None:
        self.api, self.key, self.id, self.link = api, key, made["id"], made["connect_url"]
        self.visitor = Visitor(api)

    @classmethod
    async def begin(cls, api: Api, **asked: object) -> "Person":
        await an_integration(api)
        key = await api.app_with("asker", Action.CONNECT, Action.TOKEN, return_to=(RETURN,))
        made = await api.post("/v1/connections", key, NEW | asked)
        return cls(api, key, made.json())

    async def leave(self) -> None:
        await self.visitor.go_on(self.link)

    async def worker_finishes(self, came: str | None = None) -> None:
        consent = await consent_of(self.api, self.link)
        async with self.api.worker.write() as tx:
            done = consent.model_copy(update={"status": ConsentStatus.DONE})
            account = None if came is None else ConsentAccount(came=came)
            await tx.consents.replace(done, expected=consent.revision, account=account)
        await self.api.install(await self.api.row(TENANT, self.id), "at-1")

    async def next_link(self) -> str:
        """That of the app's next call, which begins."""
        self.api.clock.advance(1)
        url = (await self.api.lease(self.key)).json()["connect_url"]
        assert "Taking you to" in (await Visitor(self.api).go_on(url)).text
        return url


def way_back(page: str) -> dict[str, str]:
    """What the page's button brings to the app."""
    _, _, rest = page.partition('class="button" href="')
    url = rest.partition('"')[0].replace("&amp;", "&")
    assert url.startswith(RETURN), page
    return dict(parse_qsl(urlsplit(url).query))


@pytest.mark.parametrize(
    ("seconds", "another", "said"),
    [
        (0, True, "opened in another browser: continue there"),
        (3600, True, "This link has expired."),
        (3600, False, "This link has expired."),
    ],
)
async def test_a_link_that_goes_on_elsewhere_or_has_expired(api: Api, seconds: int, another: bool, said: str):
    person = await Person.begin(api, return_to=RETURN)
    await person.leave()
    api.clock.advance(seconds)
    page = await (Visitor(api) if another else person.visitor).open(person.link)
    assert said in page.text
    assert AGAIN in page.text
    if seconds:
        expected = {"connection_id": person.id, "state": "failed", "error": "consent_expired"}
        assert way_back(page.text) == expected
    else:
        assert "Back to" not in page.text, "it hasn't failed: the other browser goes on"
    assert await person.next_link() != person.link


async def test_a_used_link_shows_its_browser_the_outcome_and_another_one_the_way_back(api: Api):
    person = await Person.begin(api)
    await person.leave()
    old_page = await person.visitor.csrf(person.link)
    await asyncio.gather(person.visitor.come_back(iss=ISSUER), eventually_done(person, "sam@example.org"))
    for shown in (
        await person.visitor.open(person.link),
        await person.visitor.follow(await person.visitor.come_back(iss=ISSUER)),  # the back button
        await person.visitor.browser.post(person.link, data={"csrf": old_page}),
    ):
        assert shown.status_code == 200
        for named in ("idp.example is connected", "user-1", "sam@example.org", "asker", "crm", "Read user"):
            assert named in shown.text, named
    stranger = await Visitor(api).open(person.link)
    assert (stranger.status_code, "already used" in stranger.text, AGAIN in stranger.text) == (
        400,
        True,
        True,
    )
    assert "sam@example.org" not in stranger.text


async def eventually_done(person: Person, came: str) -> None:
    while (await consent_of(person.api, person.link)).status is not ConsentStatus.CODE_RECEIVED:
        await asyncio.sleep(0.01)
    await person.worker_finishes(came)


async def test_a_consent_that_fails_at_the_provider_leads_back_with_its_code(api: Api):
    """A scope that was removed there, say. What an admin has to correct isn't the subject's to read first."""
    person = await Person.begin(api, return_to=RETURN)
    await person.leave()
    page = await person.visitor.follow(
        await person.visitor.come_back(code=None, error="invalid_scope", iss=ISSUER)
    )
    assert page.status_code == 424
    assert "The access of asker to idp.example is not set up as it should be." in page.text
    assert "tell the admin of asker" in page.text
    before_the_note, _, note = page.text.partition("<details")
    assert "secret" not in before_the_note
    assert "For the admin" in note
    assert "Correct the integration&#39;s client id and secret" in note
    assert "evergrant connections ls --reference " in note
    assert way_back(page.text)["error"] == "client_rejected"
    await person.next_link()


async def test_a_callback_after_its_link_has_expired_leads_to_a_new_link(api: Api):
    person = await Person.begin(api, return_to=RETURN)
    await person.leave()
    api.clock.advance(3601)
    page = await person.visitor.come_back(iss=ISSUER)
    assert (page.status_code, AGAIN in page.text) == (409, True)
    assert way_back(page.text)["error"] == "consent_expired"
    await person.next_link()


async def test_a_state_of_an_earlier_click_leads_to_a_new_link(api: Api):
    """Two tabs: the first one's callback. The app isn't named: the browser isn't known."""
    person = await Person.begin(api, return_to=RETURN)
    await person.leave()
    first = person.visitor.sent["state"]
    await person.leave()
    page = await person.visitor.come_back(state=first, iss=ISSUER)
    assert page.status_code == 400
    assert "Connect again in the app that sent you: it gives you a new link." in page.text
    await person.next_link()


async def test_a_return_to_that_the_app_no_longer_lists_is_not_linked(api: Api):
    person = await Person.begin(api, return_to=RETURN)
    app = await api.app_named("asker")
    async with api.worker.write() as tx:
        await tx.access.put_app(app.model_copy(update={"return_to": ()}), expected=app.revision)
    api.clock.advance(3601)
    page = await person.visitor.open(person.link)
    assert AGAIN in page.text
    assert "app.example" not in page.text


async def test_the_refusal_of_a_repeated_callback_stays_on_record(api: Api):
    person = await Person.begin(api)
    await person.leave()
    await asyncio.gather(person.visitor.come_back(iss=ISSUER), eventually_done(person, "sam"))
    await person.visitor.come_back(iss=ISSUER)
    assert len(await api.records(AuditAction.CALLBACK_REFUSED)) == 1


@pytest.mark.parametrize("code", list(ErrorCode))
@pytest.mark.parametrize("over", [True, False])
def test_no_subject_is_told_to_do_what_only_an_admin_can(code: ErrorCode, over: bool):
    failure, way = Failure(code), WayOut(over=over)
    said = f"{what_happened(failure, way)} {next_step(failure, way)}"
    for word in ("secret", "EVERGRANT_", "definition", "POST", "connect_url", "None", "{"):
        assert word not in said, said
    if FAILURES[code].repairer in (Repairer.INTEGRATION_ADMIN, Repairer.PERMIT_ADMIN):
        assert "tell the admin of the app that sent you" in said


def test_a_bug_of_evergrants_is_told_with_what_became_of_the_consent():
    failure, way = Failure(ErrorCode.INTERNAL), WayOut(over=True)
    assert "error of its own" in what_happened(failure, way)
    assert "kept sealed" in what_happened(failure, way)
    assert "tell the admin of the app" in next_step(failure, way)
