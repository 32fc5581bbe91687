"""The binding `oidc`: the subject logs in at the tenant's issuer before the browser goes to the provider.

OpenID Connect Core 1.0; draft-ietf-oauth-security-topics-update section 2.3.
"""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio
from joserfc import jwt
from joserfc.jwk import OctKey

from activities.consents.login import LoginActivities
from activities.support.provider_context import ProviderContextLoader
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import ConsentStatus, reference_of
from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.requests.sender import Sender
from tests.fakes.api import Api
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.login_issuer import LoginIssuer, new_key
from tests.fakes.providers.scripted_provider import error, status
from tests.fakes.rows import an_integration as a_row
from tests.fakes.visitor import Visitor
from tests.security.pages.test_callback import ISSUER, Started, an_integration, assert_refused

RETURN = "https://app.example/done"
BY_EMAIL = LoginRule(integration="staff", claim=LoginClaim.EMAIL, domains=("corp.example",))


class LoggingIn(Started):
    """A consent whose browser has to log in."""

    issuer: LoginIssuer

    async def back_at(self) -> str:
        """Where the issuer sends the browser, which it knows."""
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            answer = await http.get(self.visitor.provider_url)
        return answer.headers["location"]

    async def log_in(self, callback: str | None = None) -> httpx2.Response:
        """The browser comes back from its login; with luck it is sent on."""
        return self.visitor.left(await self.visitor.browser.get(callback or await self.back_at()))

    @property
    def at_provider(self) -> bool:
        return self.visitor.provider_url.startswith(ISSUER)

    async def assert_ended(self, answer: httpx2.Response, code: str, status: int) -> None:
        """Nothing is left of the login, and the provider was not seen."""
        await assert_refused(answer, code, status)
        consent = await self.consent()
        assert reference_of(consent.id) in answer.text
        assert "new link" in answer.text
        assert (consent.status, consent.failure, consent.confirmed_at) == (ConsentStatus.FAILED, code, None)
        assert not self.at_provider
        assert await self.signals() == []
        async with self.api.worker.read() as tx:
            for opened in (tx.consents.code, tx.consents.verifier):
                with fails(ErrorCode.NOT_FOUND):
                    await opened(consent)


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    """With a worker that may call it."""
    async with LoginIssuer(api.clock.now) as issuer:
        parts = api.parts
        contexts = ProviderContextLoader(api.worker, parts.registry, parts.settings.public_url, api.clock)
        egress = Egress(EgressPolicy(allow=(issuer.allowance,)))
        worker = LoginActivities(api.worker, contexts, Sender(egress), egress, api.clock)
        api.link.on_job[jobs.VERIFY_LOGIN.name] = worker.verify_login
        yield issuer


async def staff(api: Api, issuer: LoginIssuer, **more: Any) -> None:
    """Our client at the tenant's issuer."""
    said = {"name": "staff", "client_id": issuer.client_id, "issuer": issuer.issuer}
    row = a_row(api.parts.settings.tenant, api.clock.now(), endpoints=issuer.endpoints, **said, **more)
    async with api.worker.write() as tx:
        await tx.integrations.put(row, Secret(issuer.client_secret), expected=None)


async def sent_to_log_in(
    api: Api, issuer: LoginIssuer, rule: LoginRule | None = None, subject: str = "user-1", **asked: Any
) -> LoggingIn:
    await staff(api, issuer)
    rule = (rule or LoginRule(integration="staff")).model_copy(update={"issuer": issuer.issuer})
    await an_integration(api, binding="oidc", login=rule)
    key = await api.app_with("asker", Action.CONNECT, Action.TOKEN, return_to=(RETURN,))
    body = {"integration": "crm", "subject": subject, **asked}
    made = (await api.post("/v1/connections", key, body)).json()
    it = LoggingIn(api, Visitor(api), made["id"], made["connect_url"])
    it.issuer = issuer
    shown = await it.visitor.go_on(it.link)
    assert it.visitor.provider_url.startswith(issuer.issuer), shown.text
    return it


async def test_the_honest_subject_logs_in_and_is_connected(api: Api, issuer: LoginIssuer):
    it = await sent_to_log_in(api, issuer, return_to=RETURN)
    login = it.visitor.sent
    asked = (login["scope"], login["response_type"], login["code_challenge_method"])
    assert asked == ("openid", "code", "S256")
    assert len(login["nonce"]) == 43
    assert "127.0.0.1" in (await it.visitor.open(it.link)).text, "the page says where"
    await it.log_in()
    assert it.at_provider
    asked = it.visitor.sent
    assert login["state"] != asked["state"]
    assert login["redirect_uri"] != asked["redirect_uri"]
    (record,) = await it.records(AuditAction.CONSENT_CONFIRMED)
    assert (record.object, record.context.by) == (it.connection_id, "subject")
    assert (record.detail["binding"], record.detail["login"]) == ("oidc", "staff")
    answer, _ = await asyncio.gather(it.visitor.come_back(iss=ISSUER), it.worker_finishes())
    assert answer.headers["location"] == f"{RETURN}?connection_id={it.connection_id}&state=active"
    assert await it.signals() == ["consent_granted"]
    async with api.worker.read() as tx:
        assert (await tx.consents.code(await it.consent())).reveal() == "code-1"


async def test_another_person_is_turned_away_before_the_provider_is_seen(
    api: Api, issuer: LoginIssuer, caplog: pytest.LogCaptureFixture
):
    """user-1 sends the own connect link to a victim, who is logged in at the issuer."""
    it = await sent_to_log_in(api, issuer)
    issuer.person = {"sub": "victim"}
    answer = await it.log_in()
    await it.assert_ended(answer, "subject_mismatch", 409)
    assert "user-1" not in answer.text, "the right subject is not named"
    (record,) = await it.records(AuditAction.SUBJECT_MISMATCH)
    assert (record.object, record.detail["claimed_subject"]) == (it.connection_id, "victim")
    assert [it.levelno for it in caplog.records if "subject mismatch" in it.message] == [logging.WARNING]
    assert "subject_mismatch" in (await it.visitor.open(it.link)).text
    await assert_refused(await Visitor(api).open(it.link))


VERIFIED = {"email": "ann@corp.example", "email_verified": True}


@pytest.mark.parametrize("told_at", ["id token", "userinfo"])
@pytest.mark.parametrize("verified", [True, False])
async def test_by_a_verified_email_address_of_a_listed_domain(
    api: Api, issuer: LoginIssuer, verified: bool, told_at: str
):
    """Every rule of names: tests/unit/core/connections/test_login.py."""
    it = await sent_to_log_in(api, issuer, BY_EMAIL, "ann@corp.example")
    assert it.visitor.sent["scope"] == "openid email"
    person = {**VERIFIED, "email_verified": verified}
    issuer.person = {"sub": "1", **(person if told_at == "id token" else {})}
    issuer.told = {"sub": "1", **(person if told_at == "userinfo" else {})}
    answer = await it.log_in()
    assert it.at_provider is verified
    if not verified:
        await it.assert_ended(answer, "subject_mismatch", 409)
        (record,) = await it.records(AuditAction.SUBJECT_MISMATCH)
        assert "verified" in record.detail["why"]


async def test_core_5_3_2_the_userinfo_of_another_person(api: Api, issuer: LoginIssuer):
    it = await sent_to_log_in(api, issuer, BY_EMAIL, "ann@corp.example")
    issuer.person, issuer.told = {"sub": "1"}, {"sub": "2", **VERIFIED}
    await it.assert_ended(await it.log_in(), "id_token_refused", 409)


def unsigned(claims: dict[str, Any]) -> str:
    parts = (json.dumps(it).encode() for it in ({"alg": "none"}, claims))
    return ".".join(base64.urlsafe_b64encode(it).rstrip(b"=").decode() for it in parts) + "."


def signing(alg: str, key: Any, **header: str) -> Callable[[dict[str, Any]], str]:
    return lambda claims: jwt.encode({"alg": alg, **header}, claims, key)


@pytest.mark.parametrize(
    "bend",
    [
        lambda it: it.bent.update(nonce="of-another-login"),
        lambda it: it.bent.update(nonce=None),
        lambda it: it.bent.update(iss="https://evil.example"),
        lambda it: it.bent.update(aud="another-client"),
        lambda it: setattr(it, "sign", unsigned),
        lambda it: setattr(it, "sign", signing("HS256", OctKey.import_key(it.client_secret))),
        lambda it: setattr(it, "sign", signing("ES256", new_key("x"), kid="x")),
    ],
    ids=["nonce", "no nonce", "iss", "aud", "alg none", "HS256 with the client secret", "a key of its own"],
)
async def test_core_3_1_3_7_an_id_token_that_is_refused(
    api: Api, issuer: LoginIssuer, bend: Callable[[LoginIssuer], None]
):
    """Every single claim: tests/unit/providers/requests/test_login.py."""
    it = await sent_to_log_in(api, issuer)
    bend(issuer)
    await it.assert_ended(await it.log_in(), "id_token_refused", 409)
    (record,) = await it.records(AuditAction.CONSENT_FAILED)
    assert record.detail["reason"] == "id_token_refused"


async def test_the_issuers_keys_are_read_once_and_again_for_a_new_one(api: Api, issuer: LoginIssuer):
    it = await sent_to_log_in(api, issuer)
    await it.log_in()
    key = await api.app_with("other", Action.CONNECT)
    for reads in (1, 2):
        if reads == 2:
            issuer.key = new_key("two")
        made = await api.post("/v1/connections", key, {"integration": "crm", "subject": f"user-{reads + 1}"})
        again = LoggingIn(api, Visitor(api), made.json()["id"], made.json()["connect_url"])
        await again.visitor.go_on(again.link)
        issuer.person = {"sub": f"user-{reads + 1}"}
        await again.log_in()
        assert again.at_provider
        assert issuer.count("keys") == reads


async def test_a_replayed_callback_and_the_callback_in_another_browser(api: Api, issuer: LoginIssuer):
    it = await sent_to_log_in(api, issuer)
    callback = await it.back_at()
    attacker = Visitor(api)
    attacker.browser.cookies.set("__Host-evergrant", "A" * 43, domain="evergrant.test")
    await assert_refused(await attacker.browser.get(callback))
    assert issuer.count("token") == 0
    await it.log_in(callback)
    assert it.at_provider
    await assert_refused(await it.visitor.browser.get(callback))
    assert issuer.count("token") == 1
    assert (await it.consent()).status is ConsentStatus.STARTED


async def test_parallel_callbacks_make_one_login(api: Api, issuer: LoginIssuer):
    it = await sent_to_log_in(api, issuer)
    callback = await it.back_at()
    answers = await asyncio.gather(*(it.visitor.browser.get(callback) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    assert issuer.count("token") == 1


@pytest.mark.parametrize("iss", ["https://evil.example", None])
async def test_rfc9207_2_4_a_callback_of_another_issuer(api: Api, issuer: LoginIssuer, iss: str | None):
    it = await sent_to_log_in(api, issuer)
    await assert_refused(answer := await it.visitor.come_back(iss=iss))
    assert "Connect again in asker: it gives you a new link." in answer.text
    assert (await it.consent()).status is ConsentStatus.FAILED
    assert issuer.count("token") == 0


async def test_a_state_of_the_login_opens_no_callback_of_the_provider_nor_the_other_way_round(
    api: Api, issuer: LoginIssuer
):
    """The implicit flow's fragment would bring a token without a login."""
    api.parts.settings.allow_tokens_in_browser = True
    it = await sent_to_log_in(api, issuer, flow="implicit")
    crm = f"/oauth/callback/{(await it.consent()).integration_id}"
    login = it.visitor.sent
    await assert_refused(await it.visitor.come_back(crm, iss=ISSUER))
    token = {"state": login["state"], "access_token": "at", "token_type": "bearer", "iss": ISSUER}
    for path in (crm, urlsplit(login["redirect_uri"]).path):
        refused = await it.visitor.browser.post(f"{path}/fragment", data=token)
        assert (refused.status_code, refused.json()["code"]) == (400, "callback_invalid")
    assert (await it.consent()).status is ConsentStatus.STARTED
    assert await it.signals() == []
    await it.log_in()
    assert it.at_provider
    provider = it.visitor.sent["state"]
    away = urlsplit(login["redirect_uri"]).path
    await assert_refused(await it.visitor.browser.get(f"{away}?state={provider}&code=c&iss={issuer.issuer}"))
    assert issuer.count("token") == 1


async def test_the_fragment_of_a_token_is_no_login_where_the_provider_is_the_issuer(
    api: Api, issuer: LoginIssuer
):
    """Both callbacks then have one address."""
    api.parts.settings.allow_tokens_in_browser = True
    await staff(api, issuer, binding="oidc", login=LoginRule(integration="staff", issuer=issuer.issuer))
    key = await api.app_with("asker", Action.CONNECT)
    body = {"integration": "staff", "subject": "user-1", "flow": "implicit"}
    made = (await api.post("/v1/connections", key, body)).json()
    it = LoggingIn(api, Visitor(api), made["id"], made["connect_url"])
    await it.visitor.go_on(it.link)
    login = it.visitor.sent
    token = {"state": login["state"], "access_token": "at", "token_type": "bearer", "iss": issuer.issuer}
    refused = await it.visitor.browser.post(f"{login['redirect_uri']}/fragment", data=token)
    assert (refused.status_code, refused.json()["code"]) == (400, "callback_invalid")
    assert await it.signals() == []
    await it.log_in()
    assert it.visitor.sent["response_type"] == "token"


@pytest.mark.parametrize(
    ("said", "code", "answered"),
    [
        ("access_denied", "consent_required", 409),
        ("invalid_scope", "client_rejected", 424),
        ("server_error", "provider_error", 503),
    ],
)
async def test_an_error_of_the_issuer_ends_neither_the_consent_nor_the_connection(
    api: Api, issuer: LoginIssuer, said: str, code: str, answered: int
):
    it = await sent_to_log_in(api, issuer)
    words = {"error": said, "error_description": "Not in this directory", "iss": issuer.issuer}
    await assert_refused(await it.visitor.come_back(code=None, **words), code, answered)
    (record,) = await it.records(AuditAction.CALLBACK_REFUSED)
    quoted = {"error": said, "description": "Not in this directory"}
    assert (record.object, record.detail["provider_said"]) == (it.connection_id, quoted)
    assert await it.signals() == []
    await it.visitor.go_on(it.link)
    await it.log_in()
    assert it.at_provider


@pytest.mark.parametrize(
    ("answer", "said", "code", "answered"),
    [
        (status(503), None, "provider_error", 503),
        (error("invalid_client", 401), "invalid_client", "client_rejected", 424),
        (error("invalid_grant"), "invalid_grant", "grant_rejected", 400),
    ],
)
async def test_what_time_or_an_admin_repairs_leaves_the_link_usable(
    api: Api, issuer: LoginIssuer, answer: Any, said: str | None, code: str, answered: int
):
    it = await sent_to_log_in(api, issuer)
    issuer.script(answer)
    callback = await it.back_at()
    page, consent, is_late = await it.log_in(callback), await it.consent(), said == "invalid_grant"
    await assert_refused(page, "callback_invalid" if is_late else code, answered)
    assert reference_of(consent.id) in page.text
    assert ("log in again" in page.text) is is_late
    assert "new link" not in page.text
    await assert_refused(await it.log_in(callback))
    assert (consent.status, consent.confirmed_at) == (ConsentStatus.STARTED, None)
    (record,) = await it.records(AuditAction.CONSENT_FAILED)
    assert (record.detail["reason"], record.detail.get("provider_said", {}).get("error")) == (code, said)
    await it.visitor.go_on(it.link)
    await it.log_in()
    assert it.at_provider


async def test_a_browser_that_was_lost_after_the_login_goes_on_and_no_other_one_does(
    api: Api, issuer: LoginIssuer
):
    """The API learned nothing of the worker's commit."""
    it = await sent_to_log_in(api, issuer)
    verify = api.link.on_job[jobs.VERIFY_LOGIN.name]

    async def lost(request: Any) -> Any:
        await verify(request)
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE)

    api.link.on_job[jobs.VERIFY_LOGIN.name] = lost
    await assert_refused(await it.log_in(), "temporal_unavailable", 503)
    api.link.on_job[jobs.VERIFY_LOGIN.name] = verify
    await assert_refused(await Visitor(api).open(it.link))
    await it.visitor.go_on(it.link)
    assert it.at_provider
    victim = Visitor(api)
    victim.provider_url = it.visitor.provider_url
    await assert_refused(await victim.come_back(iss=ISSUER))
    assert issuer.count("token") == 1


async def test_a_login_that_was_begun_again_meanwhile_decides_nothing(api: Api, issuer: LoginIssuer):
    it = await sent_to_log_in(api, issuer)
    verify = api.link.on_job[jobs.VERIFY_LOGIN.name]

    async def clicked_meanwhile(request: Any) -> Any:
        await it.visitor.go_on(it.link)
        return await verify(request)

    api.link.on_job[jobs.VERIFY_LOGIN.name] = clicked_meanwhile
    await assert_refused(await it.log_in())
    assert (await it.consent()).confirmed_at is None
    assert issuer.count("token") == 0


async def test_a_configuration_that_lets_no_subject_log_in_says_its_repair(api: Api, issuer: LoginIssuer):
    await an_integration(api, binding="oidc", login=LoginRule(integration="staff", issuer=issuer.issuer))
    key = await api.app_with("asker", Action.CONNECT)
    made = (await api.post("/v1/connections", key, {"integration": "crm", "subject": "user-1"})).json()
    visitor = Visitor(api)
    await assert_refused(answer := await visitor.go_on(made["connect_url"]), "client_rejected", 424)
    assert "name another one in login" in answer.text
    await staff(api, issuer)
    await visitor.go_on(made["connect_url"])
    assert visitor.provider_url.startswith(issuer.issuer)
