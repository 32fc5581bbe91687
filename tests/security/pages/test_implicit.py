"""The implicit flow under attack (RFC 6749 section 4.2): a token that passes through a browser.

Each ends with a clear error, no token kept, and a record; and none is ever in a URL of ours.
"""

import asyncio
import logging
import re
from base64 import b64encode
from hashlib import sha256
from urllib.parse import urlencode, urlsplit

import httpx2
import pytest
import pytest_asyncio

from evergrant_server.api.connections.flows import ALLOW_SETTING
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import ConsentKind, ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from tests.fakes.api import Api
from tests.fakes.events.transmitter import id_token
from tests.fakes.visitor import Visitor
from tests.security.pages.test_callback import ISSUER, Started, an_integration, assert_refused, sent_away

TOKEN = "at-that-passed-through-a-browser"
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Sent(Started):
    """A browser that was sent for a token, and the page that it comes back to."""

    key: str

    def fragment(self, **changes: str | None) -> str:
        said: dict[str, str | None] = {
            "access_token": TOKEN,
            "token_type": "bearer",
            "expires_in": "600",
            "scope": "read",
            "state": self.visitor.sent["state"],
            "iss": ISSUER,
            **changes,
        }
        return urlencode({name: value for name, value in said.items() if value is not None})

    async def bring(self, fragment: str, by: Visitor | None = None, **more: str) -> httpx2.Response:
        """As the page's script does."""
        path = f"{urlsplit(self.visitor.sent['redirect_uri']).path}/fragment"
        browser = (by or self.visitor).browser
        return await browser.post(path, content=fragment, headers=_FORM | more)

    async def assert_nothing_kept(
        self, status: ConsentStatus = ConsentStatus.STARTED, *, recorded: bool = True
    ) -> None:
        consent = await self.consent()
        assert consent.status is status
        assert await self.signals() == []
        assert bool(await self.records(AuditAction.CALLBACK_REFUSED)) is recorded
        async with self.api.worker.read() as tx:
            with pytest.raises(Failure, match="holds no tokens"):
                await tx.consents.imported_tokens(consent)


ASKED = {"integration": "crm", "subject": "user-1", "flow": "implicit"}


async def an_app(api: Api, **integration: object) -> str:
    await an_integration(api, **integration)
    return await api.app_with("asker", Action.CONNECT)


async def asking(api: Api, **asked: object) -> Sent:
    key = await an_app(api)
    sent = await sent_away(api, key, Sent, **ASKED | asked)
    sent.key = key
    return sent


@pytest_asyncio.fixture
async def it(api: Api) -> Sent:
    api.parts.settings.allow_tokens_in_browser = True
    return await asking(api)


async def test_rfc6749_4_2_1_a_token_is_asked_for_and_no_code(it: Sent):
    assert it.visitor.sent["response_type"] == "token"
    assert len(it.visitor.sent["state"]) == 43
    assert not {"code_challenge", "code_challenge_method", "response_mode"} & set(it.visitor.sent)


async def test_a_token_is_sealed_and_handed_to_the_worker(api: Api, it: Sent, caplog):
    caplog.set_level(logging.DEBUG)
    answer, _ = await asyncio.gather(it.bring(it.fragment()), it.worker_finishes())
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"next": urlsplit(it.link).path}
    assert "is connected" in (await it.visitor.open(answer.json()["next"])).text
    assert await it.signals() == ["consent_granted"]
    consent = await it.consent()
    assert (consent.kind, consent.granted_scopes) == (ConsentKind.IMPORT, ("read",))
    async with api.worker.read() as tx:
        kept = await tx.consents.imported_tokens(consent)
    assert (kept.access_token.reveal(), kept.refresh_token, kept.token_type) == (TOKEN, None, "Bearer")
    assert kept.expires_at is not None
    assert (kept.expires_at - api.clock.now()).total_seconds() == 600
    assert kept.issued_at == api.clock.now()
    assert TOKEN not in caplog.text
    (record,) = await it.records(AuditAction.CONSENT_GRANTED)
    assert TOKEN not in record.model_dump_json()
    files = [path for path in api.parts.settings.data_dir.rglob("*") if path.is_file()]
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


async def test_the_page_runs_one_script_and_asks_nobody_else(it: Sent):
    answer = await it.visitor.browser.get(it.visitor.sent["redirect_uri"])
    assert answer.status_code == 200
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    hashed = b64encode(sha256(script.encode()).digest()).decode()
    policy = {it.split()[0]: it.split()[1:] for it in answer.headers["content-security-policy"].split("; ")}
    assert policy["script-src"] == [f"'sha256-{hashed}'"]
    assert (policy["default-src"], policy["connect-src"]) == (["'none'"], ["'self'"])
    assert (policy["frame-ancestors"], policy["base-uri"]) == (["'none'"], ["'none'"])
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert (await it.consent()).status is ConsentStatus.STARTED  # looking changes nothing


async def test_rfc9700_4_7_a_fragment_of_another_browser(api: Api, it: Sent):
    await assert_refused(await it.bring(it.fragment(), by=Visitor(api)))
    another = Visitor(api)
    await another.open(it.link)  # it has a cookie of its own
    await assert_refused(await it.bring(it.fragment(), by=another))
    await it.assert_nothing_kept()


@pytest.mark.parametrize(
    "changes",
    [{"state": None}, {"state": ""}, {"state": "guessed"}, {"state": "x" * 600}],
    ids=["missing", "empty", "guessed", "long"],
)
async def test_rfc6749_10_12_a_state_that_is_not_ours(it: Sent, changes: dict[str, str | None]):
    await assert_refused(await it.bring(it.fragment(**changes)))
    await it.assert_nothing_kept(recorded=False)


async def test_a_fragment_works_once(api: Api, it: Sent):
    await asyncio.gather(it.bring(it.fragment()), it.worker_finishes())
    again = await it.bring(it.fragment(access_token="another"))
    assert (again.status_code, again.json()) == (200, {"next": urlsplit(it.link).path}), "the outcome"
    assert len(await it.records(AuditAction.CALLBACK_REFUSED)) == 1
    consent = await it.consent()
    assert consent.status is ConsentStatus.DONE
    async with api.worker.read() as tx:
        assert (await tx.consents.imported_tokens(consent)).access_token.reveal() == TOKEN


async def test_of_two_at_once_one_wins(it: Sent):
    fragments = [it.fragment(), it.fragment(access_token="another")]
    first, second, _ = await asyncio.gather(*(it.bring(one) for one in fragments), it.worker_finishes())
    assert first.json() == second.json() == {"next": urlsplit(it.link).path}
    assert len(await it.records(AuditAction.CALLBACK_REFUSED)) == 1
    assert await it.signals() == ["consent_granted"]


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": None},
        {"iss": "https://evil.example"},
        {"access_token": None},
        {"access_token": ""},
        {"token_type": None},
        {"error": "access_denied"},
        {"access_token": "x" * 9000},
    ],
    ids=["no-iss", "other-iss", "no-token", "empty-token", "no-type", "both", "long"],
)
async def test_a_bad_fragment_ends_its_attempt(it: Sent, changes: dict[str, str | None]):
    answer = await it.bring(it.fragment(**changes))
    await assert_refused(answer)
    assert TOKEN not in answer.text
    await it.assert_nothing_kept(ConsentStatus.FAILED)


@pytest.mark.parametrize(
    "changes",
    [{"token_type": "mac"}, {"expires_in": "soon"}, {"access_token": "two words"}],
    ids=["type", "expiry", "token"],
)
async def test_rfc6749_7_1_what_no_token_reply_may_say_is_not_taken(it: Sent, changes: dict[str, str]):
    answer = await it.bring(it.fragment(**changes))
    assert answer.json()["code"] == "reply_unreadable"
    assert not any(value in answer.text for value in ("two words", "soon"))
    await it.assert_nothing_kept(ConsentStatus.FAILED)


async def test_a_refresh_token_that_must_not_come_is_dropped(api: Api, it: Sent):
    await asyncio.gather(it.bring(it.fragment(refresh_token="rt-1")), it.worker_finishes())
    async with api.worker.read() as tx:
        assert (await tx.consents.imported_tokens(await it.consent())).refresh_token is None


@pytest.mark.parametrize(
    "fragment", ["a=" + "x" * 20_000, "&".join(f"p{n}=1" for n in range(100)), "\u00e9", ""]
)
async def test_a_body_that_is_no_fragment(it: Sent, fragment: str):
    await assert_refused(await it.bring(fragment))
    await it.assert_nothing_kept(recorded=False)


async def test_a_huge_body_and_another_content_type(it: Sent):
    assert (await it.bring("a=" + "x" * (2 << 20))).status_code == 413
    assert (await it.consent()).status is ConsentStatus.STARTED
    await assert_refused(await it.bring(it.fragment(), **{"Content-Type": "text/plain"}))
    await it.assert_nothing_kept(recorded=False)


@pytest.mark.parametrize("error", [None, "access_denied"])
async def test_a_token_in_the_query_is_refused(it: Sent, error: str | None):
    answer = await it.visitor.raw(it.fragment(error=error))
    await assert_refused(answer)
    assert TOKEN not in answer.text + str(answer.headers)
    await it.assert_nothing_kept(ConsentStatus.FAILED)


async def test_a_token_in_a_posted_form_gets_into_no_url(it: Sent):
    answer = await it.visitor.browser.post(
        it.visitor.sent["redirect_uri"], content=it.fragment(), headers=_FORM
    )
    await assert_refused(answer)
    assert TOKEN not in answer.text + str(answer.headers)


async def test_a_code_was_not_asked_for(it: Sent):
    await assert_refused(await it.visitor.come_back(iss=ISSUER))
    await it.assert_nothing_kept(ConsentStatus.FAILED)


@pytest.mark.parametrize("where", ["fragment", "query"])
async def test_rfc6749_4_2_2_1_a_no_is_heard(it: Sent, where: str):
    no = it.fragment(access_token=None, token_type=None, error="access_denied", error_description="<b>no</b>")
    it.api.clock.advance(5)  # a person has read the provider's page
    answer = await it.bring(no) if where == "fragment" else await it.visitor.raw(no)
    assert answer.status_code in (200, 303)
    assert await it.signals() == ["consent_denied"]
    consent = await it.consent()
    assert (consent.status, consent.failure) == (ConsentStatus.DENIED, ErrorCode.CONSENT_DENIED)
    (record,) = await it.records(AuditAction.CONSENT_DENIED)
    assert record.detail["error"] == "access_denied"


async def test_another_error_has_its_repairer(it: Sent):
    no = it.fragment(access_token=None, token_type=None, error="unsupported_response_type")
    assert (await it.bring(no)).status_code == 200
    assert (await it.consent()).failure == ErrorCode.CLIENT_REJECTED


async def test_an_attempt_for_a_code_takes_no_token(api: Api):
    api.parts.settings.allow_tokens_in_browser = True
    sent = await asking(api, flow="authorization_code")
    await assert_refused(await sent.bring(sent.fragment()))
    await sent.assert_nothing_kept(ConsentStatus.FAILED)


async def test_off_until_an_operator_allows_it(api: Api):
    """When it is begun: nothing is made, and the answer names the setting."""
    key = await an_app(api)
    answer = await api.post("/v1/connections", key, ASKED)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert ALLOW_SETTING in answer.json()["detail"]
    assert (answer.json()["field"], answer.json()["setting"]) == ("flow", ALLOW_SETTING)
    without = await api.post("/v1/connections", key, {"integration": "crm", "subject": "user-1"})
    assert without.json()["flow"] == "authorization_code"


async def test_turned_off_meanwhile(api: Api, it: Sent):
    """At the link, at the page and where the token is brought; and no other link is made."""
    api.parts.settings.allow_tokens_in_browser = False
    page = await it.visitor.browser.get(it.visitor.sent["redirect_uri"])
    brought = await it.bring(it.fragment())
    for answer in (page, brought):
        await assert_refused(answer)
        assert ALLOW_SETTING in answer.text
    await it.assert_nothing_kept(recorded=False)
    again = await it.visitor.go_on(it.link)
    assert ALLOW_SETTING in again.text
    body = {"integration": "crm", "subject": "user-1"}
    assert ALLOW_SETTING in (await api.post("/v1/connections", it.key, body)).text


async def test_dpop_and_a_token_in_a_browser_exclude_each_other(api: Api):
    api.parts.settings.allow_tokens_in_browser = True
    answer = await api.post("/v1/connections", await an_app(api, dpop=True), ASKED)
    assert (answer.json()["code"], answer.json()["field"]) == ("invalid_request", "dpop")


@pytest.mark.parametrize("claims", [{}, {"nonce": "another"}])
async def test_oidc_core_3_2_2_11_an_id_token_of_another_attempt(api: Api, claims: dict[str, str]):
    api.parts.settings.allow_tokens_in_browser = True
    it = await asking(api, scopes=["openid"])
    assert (await it.bring(it.fragment(id_token=id_token("account-1", **claims)))).status_code == 409
    await it.assert_nothing_kept(ConsentStatus.FAILED)
    assert (await it.consent()).failure == ErrorCode.ID_TOKEN_REFUSED


async def test_app_first_has_the_app_confirm_before_any_token_comes(api: Api):
    api.parts.settings.allow_tokens_in_browser = True
    key, visitor = await an_app(api, binding="app_first"), Visitor(api)
    made = (await api.post("/v1/connections", key, ASKED)).json()
    form = {"csrf": await visitor.csrf(made["connect_url"])}
    shown = await visitor.follow(await visitor.browser.post(made["connect_url"], data=form))
    code = shown.text.partition('<code class="code">')[2].partition("</code>")[0]
    assert visitor.provider_url == ""
    confirm = {"code": code, "subject": ASKED["subject"]}
    assert (await api.post(f"/v1/connections/{made['id']}/confirm", key, confirm)).status_code == 200
    await visitor.go_on(made["connect_url"])
    it = Sent(api, visitor, made["id"], made["connect_url"])
    answer, _ = await asyncio.gather(it.bring(it.fragment()), it.worker_finishes())
    assert answer.status_code == 200
    assert await it.signals() == ["consent_returned", "consent_granted"]
