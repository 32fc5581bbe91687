"""Whose account: a consent is bound to the subject whom the app confirms from its own session.

draft-ietf-oauth-security-topics-update section 2.3. The numbered attacks are those of ADR 0024.
"""

import asyncio
import logging
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import challenge_of
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode
from tests.fakes.api import Api
from tests.fakes.failures import fails
from tests.fakes.patience import eventually
from tests.fakes.visitor import Visitor
from tests.security.pages.test_callback import ISSUER, Started, an_integration, assert_refused, sent_away

RETURN = "https://app.example/done?tab=1"
VERIFIER = "of-the-subject's-session-" + "v" * 30


class Bound(Started):
    """A consent that its app, `asker`, has to confirm."""

    key = ""

    async def returns(self, **more: str) -> str:
        """The browser comes back from the provider; returns the confirm code that it takes to the app."""
        answer = await self.visitor.come_back(iss=ISSUER, **more)
        return code_of(answer)

    async def confirm(
        self, code: str, subject: str = "user-1", key: str = "", **more: Any
    ) -> httpx2.Response:
        body = {"code": code, "subject": subject, **more}
        return await self.api.post(f"/v1/connections/{self.connection_id}/confirm", key or self.key, body)

    async def confirmed(self, code: str, **more: Any) -> httpx2.Response:
        """It is, and a worker exchanges the code."""
        answer, _ = await asyncio.gather(self.confirm(code, **more), self.worker_finishes())
        return answer

    async def worker_fails(self) -> None:
        await eventually(self.consent, lambda it: it.status is ConsentStatus.CODE_RECEIVED)
        before = await self.consent()
        failed = {"status": ConsentStatus.FAILED, "failure": ErrorCode.PROVIDER_ERROR}
        async with self.api.worker.write() as tx:
            await tx.consents.replace(before.model_copy(update=failed), expected=before.revision)

    async def assert_destroyed(self) -> None:
        consent = await self.consent()
        async with self.api.worker.read() as tx:
            with fails(ErrorCode.NOT_FOUND):
                await tx.consents.code(consent)
            with fails(ErrorCode.NOT_FOUND):
                await tx.consents.verifier(consent)


def code_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 303, answer.text
    return dict(parse_qsl(urlsplit(answer.headers["location"]).query))["evergrant_code"]


async def bound(api: Api, *, binding: str = "app", **asked: Any) -> Bound:
    """An attempt whose browser is at the provider."""
    it = await requested(api, binding=binding, **asked)
    await it.visitor.go_on(it.link)
    return it


async def requested(api: Api, *, binding: str = "app", **asked: Any) -> Bound:
    await an_integration(api, binding=binding)
    key = await api.app_with("asker", Action.CONNECT, Action.TOKEN, return_to=(RETURN,))
    body = {"integration": "crm", "subject": "user-1", "return_to": RETURN, **asked}
    made = (await api.post("/v1/connections", key, body)).json()
    it = Bound(api, Visitor(api), made["id"], made["connect_url"])
    it.key = key
    return it


async def assert_mismatch(answer: httpx2.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (409, "subject_mismatch"), answer.text
    assert "user-1" not in answer.text, "the right subject is not named"


async def test_a_consent_whose_code_is_spent_is_said_to_have_failed(api: Api):
    """The provider's 5xx is one to try again elsewhere; here it ends what was confirmed."""
    it = await bound(api)
    code = await it.returns()
    answer, _ = await asyncio.gather(it.confirm(code), it.worker_fails())
    for told in (answer, await it.confirm(code)):
        assert (told.status_code, told.json()["code"]) == (503, "provider_error")
        assert told.json()["consent"] == "failed"


async def test_the_app_confirms_before_the_code_is_exchanged(api: Api):
    it = await bound(api)
    answer = await it.visitor.come_back(iss=ISSUER)
    code = code_of(answer)
    expected = f"{RETURN}&connection_id={it.connection_id}&evergrant_code={code}"
    assert answer.headers["location"] == expected
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert len(code) == 43
    consent = await it.consent()
    assert consent.status is ConsentStatus.CONFIRMING
    assert code not in consent.model_dump_json()
    assert await it.signals() == ["consent_returned"]
    (returned,) = await it.records(AuditAction.CONSENT_RETURNED)
    assert (returned.object, returned.context.by) == (it.connection_id, "subject")

    answer = await it.confirmed(code)
    assert (answer.status_code, answer.json()["state"], answer.json()["generation"]) == (200, "active", 1)
    assert await it.signals() == ["consent_granted"]
    (record,) = await it.records(AuditAction.CONSENT_CONFIRMED)
    assert (record.object, record.context.by) == (it.connection_id, "app:asker")
    again = await it.confirm(code)
    assert (again.status_code, again.json()) == (200, answer.json()), "confirmed twice: the same answer"
    assert await it.signals() == []
    assert len(await it.records(AuditAction.CONSENT_CONFIRMED)) == 1
    await assert_mismatch(await it.confirm(code, "another"))
    assert (await it.consent()).status is ConsentStatus.DONE


async def test_attack_1_a_link_that_a_victim_finishes_in_another_app_session(
    api: Api, caplog: pytest.LogCaptureFixture
):
    """user-1 sends the own connect link to a victim, who consents and comes back to the app."""
    it = await bound(api)
    code = await it.returns()
    await assert_mismatch(await it.confirm(code, "victim"))
    assert (await it.consent()).status is ConsentStatus.FAILED
    await it.assert_destroyed()
    assert "consent_granted" not in await it.signals()
    (record,) = await it.records(AuditAction.SUBJECT_MISMATCH)
    assert (record.object, record.detail["claimed_subject"]) == (it.connection_id, "victim")
    await assert_mismatch(await it.confirm(code)), "nor by the right subject afterwards"
    assert [it.levelno for it in caplog.records if "subject mismatch" in it.message] == [logging.WARNING]
    assert (await api.lease(it.key)).json()["code"] == "consent_required"
    assert "subject_mismatch" in (await it.visitor.open(it.link)).text


async def test_attack_2_a_confirm_with_an_id_and_a_guessed_code(api: Api):
    it = await bound(api)
    await it.returns()
    for guess in ((await it.consent()).id, it.connection_id, "A" * 43, it.link.rpartition("/")[2]):
        answer = await it.confirm(guess)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    refused = await api.lease(it.key)
    assert (refused.status_code, refused.json()["code"]) == (409, "consent_required")
    assert (await it.consent()).status is ConsentStatus.CONFIRMING


async def test_attack_3_a_good_code_posted_by_another_app(api: Api):
    it = await bound(api)
    code = await it.returns()
    other = await api.app_with("other", Action.CONNECT)
    answer = await it.confirm(code, key=other)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert (await it.confirmed(code)).status_code == 200, "the consent lives on"


@pytest.mark.parametrize("verifier", [None, "v-of-another-session"])
async def test_attack_4_the_right_subject_with_the_verifier_of_another_session(
    api: Api, verifier: str | None, caplog: pytest.LogCaptureFixture
):
    it = await bound(api, challenge=challenge_of(VERIFIER))
    code = await it.returns()
    await assert_mismatch(await it.confirm(code, verifier=verifier))
    await it.assert_destroyed()
    await assert_mismatch(await it.confirm(code, verifier=VERIFIER))
    assert "consent_granted" not in await it.signals()
    assert len([it for it in caplog.records if "subject mismatch" in it.message]) == 1


async def test_a_verifier_confirms_the_session_that_made_the_link_and_no_link_without_a_challenge(api: Api):
    it = await bound(api, challenge=challenge_of(VERIFIER))
    assert (await it.confirmed(await it.returns(), verifier=VERIFIER)).status_code == 200
    (record,) = await it.records(AuditAction.CONSENT_CONFIRMED)
    assert record.detail["verifier"] is True
    key, body = it.key, {"integration": "crm", "subject": "user-2", "return_to": RETURN}
    made = (await api.post("/v1/connections", key, body)).json()
    downgraded = Bound(api, Visitor(api), made["id"], made["connect_url"])
    await downgraded.visitor.go_on(downgraded.link)
    answer = await downgraded.confirm(await downgraded.returns(), "user-2", key, verifier=VERIFIER)
    assert answer.json()["code"] == "subject_mismatch"


async def test_attack_5_a_confirm_a_second_late_and_the_link_works_again(api: Api):
    """No worker has undone it; afterwards another browser consents by the same link."""
    it = await bound(api)
    code = await it.returns()
    api.clock.advance(121)
    late = await it.confirm(code)
    assert (late.status_code, late.json()["code"], late.json()["connect_url"]) == (
        409, "confirm_expired", it.link
    )  # fmt: skip
    await it.assert_destroyed()
    assert "consent_granted" not in await it.signals()
    assert len(await it.records(AuditAction.CONSENT_UNCONFIRMED)) == 1
    assert (await it.confirm(code)).json()["code"] == "confirm_expired"
    it.visitor = Visitor(api)
    await it.visitor.go_on(it.link)
    newer = await it.returns()
    assert (await it.confirm(code)).status_code == 404
    assert (await it.confirmed(newer)).json()["state"] == "active"


async def test_the_connect_page_waits_for_the_confirmation_and_then_undoes_what_was_not_confirmed(api: Api):
    it = await bound(api)
    await it.returns()
    await assert_refused(await it.visitor.open(it.link), "confirm_required", 409)
    await assert_refused(await Visitor(api).open(it.link), "confirm_required", 409)
    polled = await api.lease(it.key)
    assert polled.json()["code"] == "consent_required"
    assert polled.json()["connect_url"] not in (None, it.link), "a browser has begun with that one"
    api.clock.advance(121)
    await it.visitor.go_on(it.link)
    assert (await it.consent()).status is ConsentStatus.STARTED
    assert len(await it.records(AuditAction.CONSENT_UNCONFIRMED)) == 1
    assert (await it.confirmed(await it.returns())).status_code == 200


async def test_attack_8_app_first_the_providers_url_opened_in_a_second_browser(api: Api):
    it = await requested(api, binding="app_first")
    csrf = await it.visitor.csrf(it.link)
    pressed = await it.visitor.browser.post(it.link, data={"csrf": csrf})
    assert it.visitor.provider_url == "", "nothing goes to the provider before the app has confirmed"
    code = code_of(pressed)
    answer = await it.confirm(code)
    assert (answer.status_code, answer.json()["connect_url"]) == (200, it.link), answer.text
    again = await it.confirm(code)
    assert again.json()["connect_url"] == it.link
    await assert_refused(await Visitor(api).open(it.link))
    await it.visitor.go_on(it.link)
    victim = Visitor(api)
    victim.provider_url = it.visitor.provider_url
    await assert_refused(await victim.come_back(iss=ISSUER))
    assert (await it.consent()).status is ConsentStatus.STARTED
    answer, _ = await asyncio.gather(it.visitor.come_back(iss=ISSUER), it.worker_finishes())
    assert "is connected" in (await it.visitor.follow(answer)).text
    assert await it.signals() == ["consent_returned", "consent_granted"]


async def test_app_first_another_subject_ends_it_before_the_provider_is_seen(api: Api):
    it = await requested(api, binding="app_first")
    csrf = await it.visitor.csrf(it.link)
    code = code_of(await it.visitor.browser.post(it.link, data={"csrf": csrf}))
    await assert_mismatch(await it.confirm(code, "victim"))
    posted = await it.visitor.browser.post(it.link, data={"csrf": csrf})
    await assert_refused(posted, "subject_mismatch", 409)
    assert it.visitor.provider_url == ""


async def test_a_second_app_gets_a_link_of_its_own(api: Api):
    """The first one's page names the first app, and its consent is the first one's to confirm."""
    it = await requested(api)
    other = await api.app_with("other", Action.CONNECT, Action.TOKEN)
    body = {"integration": "crm", "subject": "user-1"}
    made = (await api.post("/v1/connections", other, body)).json()
    assert (made["id"] == it.connection_id, made["connect_url"] == it.link) == (True, False)
    page = await Visitor(api).open(made["connect_url"])
    assert "Give other access" in page.text
    assert "asker" not in page.text
    leased = (await api.lease(other)).json()["connect_url"]
    assert leased == (await api.lease(other)).json()["connect_url"] == made["connect_url"]
    session = challenge_of(VERIFIER)
    assert (await api.lease(other, challenge=session)).json()["connect_url"] != leased


async def test_without_return_to_the_page_shows_the_code_for_the_program_that_made_the_link(api: Api):
    it = await bound(api, return_to=None)
    answer = await it.visitor.come_back(iss=ISSUER)
    assert answer.headers["location"] == urlsplit(it.link).path, "no code in the address bar"
    await assert_refused(await Visitor(api).open(it.link), "confirm_required", 409)
    shown = await it.visitor.follow(answer)
    assert "if you started this yourself" in shown.text
    code = shown.text.partition('<code class="code">')[2].partition("</code>")[0]
    assert (await it.confirmed(code)).status_code == 200
    assert "is connected" in (await it.visitor.open(it.link)).text


async def test_rfc8252_7_3_a_loopback_return_to_without_a_port_stands_for_every_port(api: Api):
    await an_integration(api, binding="app")
    listed = ("http://127.0.0.1/evergrant", "http://127.0.0.1:9000/fixed")
    key = await api.app_with("script", Action.CONNECT, return_to=listed)

    async def asked(return_to: str) -> int:
        body = {"integration": "crm", "subject": "user-1", "return_to": return_to}
        return (await api.post("/v1/connections", key, body)).status_code

    assert await asked("http://127.0.0.1:53412/evergrant") == 201
    for refused in (
        "http://127.0.0.1:9001/fixed",
        "http://127.0.0.1:53412/evergrant/more",
        "http://localhost:53412/evergrant",
        "https://127.0.0.1:53412/evergrant",
    ):
        assert await asked(refused) == 400, refused
    it = await sent_away(api, key, Bound, return_to="http://127.0.0.1:53412/evergrant")
    answer = await it.visitor.come_back(iss=ISSUER)
    assert answer.headers["location"].startswith("http://127.0.0.1:53412/evergrant?connection_id=")


async def test_a_revocation_before_the_confirm_and_a_grant_that_is_served_meanwhile(api: Api):
    integration = await an_integration(api, binding="app")
    connection = await api.active(integration, token="at-old", scopes=("read_user",))
    key = await api.app_with("asker", Action.CONNECT, Action.TOKEN, return_to=(RETURN,))
    await api.made_by(connection, "asker")
    made = await api.post(f"/v1/connections/{connection.id}/reauthorize", key, {"return_to": RETURN})
    it = Bound(api, Visitor(api), connection.id, made.json()["connect_url"])
    await it.visitor.go_on(it.link)
    code = await it.returns()
    assert (await api.lease(key)).json()["access_token"] == "at-old"
    await api.change(connection, lambda c: c.revocation_requested("left", api.clock.now()))
    answer = await it.confirm(code, key=key)
    assert (answer.status_code, answer.json()["code"]) == (409, "connection_revoked")
    assert "consent_granted" not in await it.signals()


async def test_a_code_that_the_worker_could_not_exchange_is_its_failure(api: Api):
    it = await bound(api)
    code = await it.returns()

    async def refused() -> None:
        await asyncio.sleep(0.2)
        consent = await it.consent()
        failed = {"status": ConsentStatus.FAILED, "failure": ErrorCode.GRANT_REJECTED}
        async with api.worker.write() as tx:
            await tx.consents.replace(consent.model_copy(update=failed), expected=consent.revision)

    answer, _ = await asyncio.gather(it.confirm(code), refused())
    assert (answer.status_code, answer.json()["code"]) == (409, "grant_rejected")


@pytest.mark.parametrize(
    ("binding", "asked", "why"),
    [
        ("app", {"flow": "device_code"}, "device code"),
        ("app_first", {"flow": "device_code"}, "device code"),
        ("oidc", {"flow": "device_code"}, "device code"),
        ("app", {"flow": "implicit"}, "app_first"),
    ],
)
async def test_a_flow_that_can_not_be_bound_so_is_refused(
    api: Api, binding: str, asked: dict[str, str], why: str
):
    api.parts.settings.allow_tokens_in_browser = True
    if asked["flow"] == "implicit":
        await an_integration(api, binding=binding)
    else:
        await api.integration(provider="github", binding=binding, default_scopes=("repo",))
    key = await api.app_with("asker", Action.CONNECT)
    answer = await api.post("/v1/connections", key, {"integration": "crm", "subject": "user-1", **asked})
    assert (answer.status_code, answer.json()["code"]) == (400, "binding_required"), answer.text
    assert why in answer.json()["detail"]
    assert await api.records() == []


async def test_none_needs_the_operators_setting_when_it_is_put_and_when_a_consent_is_requested(api: Api):
    admin = await api.app_with("admin", Action.ADMIN, Action.CONNECT)
    body = {"provider": "gitlab", "client_id": "c", "client_secret": "s"}

    async def put(binding: str) -> httpx2.Response:
        return await api.call("PUT", "/v1/integrations/crm", admin, json={**body, "binding": binding})

    assert (await put("none")).json()["binding"] == "none"
    api.parts.settings.allow_unbound_consent = False
    refused = await put("none")
    assert (refused.status_code, refused.json()["field"]) == (400, "binding")
    assert "EVERGRANT_ALLOW_UNBOUND_CONSENT" in refused.json()["detail"]
    begun = await api.post("/v1/connections", admin, {"integration": "crm", "subject": "user-1"})
    assert begun.json()["code"] == "binding_required"
    assert (await api.call("PUT", "/v1/integrations/crm", admin, json=body)).json()["binding"] == "app"
    begun = await api.post("/v1/connections", admin, {"integration": "crm", "subject": "user-1"})
    assert (begun.status_code, begun.json()["state"]) == (201, LifecycleState.PENDING_CONSENT)
