"""The callback under attack: each ends with a clear error, nothing stored, nothing lost, a record."""

import asyncio
import logging
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.telemetry import metrics
from tests.fakes.api import OTHER, TENANT, Api
from tests.fakes.patience import eventually
from tests.fakes.visitor import Visitor, consent_of

ISSUER = "https://idp.example"
ENDPOINTS = Endpoints(
    issuer=ISSUER,
    authorization_endpoint=f"{ISSUER}/authorize",
    token_endpoint=f"{ISSUER}/token",
    iss_in_callback=True,
)


class Started:
    """A consent whose browser was sent away, and what the store says of it."""

    def __init__(self, api: Api, visitor: Visitor, connection_id: str, link: str) -> None:
        self.api = api
        self.visitor = visitor
        self.connection_id = ConnectionId(connection_id)
        self.link = link

    async def consent(self) -> Consent:
        return await consent_of(self.api, self.link)

    async def records(self, action: AuditAction) -> list[AuditRecord]:
        return await self.api.records(action)

    async def signals(self) -> list[str]:
        return [message.name for message in await self.api.outbox() if message.name]

    async def worker_finishes(self) -> None:
        """What the worker does once the code is there. The consent is done last: requests look at that."""
        consent = await eventually(self.consent, lambda it: it.status is ConsentStatus.CODE_RECEIVED)
        await self.api.install(await self.api.row(TENANT, self.connection_id), "at-1")
        async with self.api.worker.write() as tx:
            done = consent.model_copy(update={"status": ConsentStatus.DONE})
            await tx.consents.replace(done, expected=consent.revision)

    async def assert_untouched(self, *, recorded: bool = True) -> None:
        """Still STARTED, no code, no signal; the refusal is on record only if its state was known."""
        assert (await self.consent()).status is ConsentStatus.STARTED
        assert await self.signals() == []
        assert bool(await self.records(AuditAction.CALLBACK_REFUSED)) is recorded


async def an_integration(api: Api, **more) -> Integration:
    return await api.integration(provider="generic", issuer=ISSUER, endpoints=ENDPOINTS, **more)


async def sent_away(api: Api, key: str, kind: type[Started] = Started, **asked: object) -> Any:
    """Begin a connection, and send a browser to its provider."""
    body = {"integration": "crm", "subject": "user-1", **asked}
    made = (await api.post("/v1/connections", key, body)).json()
    visitor = Visitor(api)
    answer = await visitor.go_on(made["connect_url"])
    assert visitor.provider_url, answer.text
    return kind(api, visitor, made["id"], made["connect_url"])


async def started(api: Api, *return_to: str) -> Started:
    await an_integration(api)
    key = await api.app_with("asker", Action.CONNECT, return_to=return_to)
    return await sent_away(api, key, **({"return_to": return_to[0]} if return_to else {}))


async def assert_refused(answer, code: str = "callback_invalid", status: int = 400) -> None:
    assert answer.status_code == status, answer.text
    assert code in answer.text
    assert "Traceback" not in answer.text


async def test_a_callback_hands_the_code_to_the_worker(api: Api):
    it = await started(api)
    answer, _ = await asyncio.gather(it.visitor.come_back(iss=ISSUER), it.worker_finishes())
    shown = await it.visitor.follow(answer)
    assert shown.status_code == 200
    assert "idp.example is connected" in shown.text
    assert await it.signals() == ["consent_granted"]
    (record,) = await it.records(AuditAction.CONSENT_GRANTED)
    assert (record.object, record.context.by) == (it.connection_id, "subject")
    consent = await it.consent()
    assert (consent.issuer, consent.token_endpoint) == (ISSUER, ENDPOINTS.token_endpoint)
    async with api.worker.read() as tx:
        assert (await tx.consents.code(consent)).reveal() == "code-1"


async def test_rfc9700_4_5_pkce_s256_fresh_for_every_attempt(api: Api):
    it = await started(api)
    first = it.visitor.sent
    await it.visitor.go_on(it.link)
    second = it.visitor.sent
    assert first["code_challenge_method"] == second["code_challenge_method"] == "S256"
    assert len(first["code_challenge"]) == 43
    assert first["code_challenge"] != second["code_challenge"]
    assert first["state"] != second["state"]
    async with api.worker.read() as tx:
        verifier = (await tx.consents.verifier(await it.consent())).reveal()
    assert 43 <= len(verifier) <= 128
    assert verifier not in (first["state"], second["state"])
    # the first attempt's state is worth nothing any more
    await assert_refused(await it.visitor.come_back(state=first["state"], iss=ISSUER))


@pytest.mark.parametrize(
    "query",
    [
        "code=c&iss=https%3A%2F%2Fidp.example",
        "state=&code=c&iss=https%3A%2F%2Fidp.example",
        "state={state}&state={state}&code=c&iss=https%3A%2F%2Fidp.example",
        "state=guessed&code=c&iss=https%3A%2F%2Fidp.example",
        "",
        "state={state}%00&code=c",
        "&".join(f"p{n}=1" for n in range(100)),
    ],
    ids=["missing", "empty", "doubled", "guessed", "nothing", "nul", "many"],
)
async def test_rfc9700_4_7_a_state_that_is_not_ours(api: Api, query: str):
    it = await started(api)
    await assert_refused(await it.visitor.raw(query.format(state=it.visitor.sent["state"])))
    await it.assert_untouched(recorded=False)


async def test_callbacks_without_a_known_state_are_counted_and_leave_no_audit_record(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A stranger's callbacks, parsable or not, write nothing to the tenant's audit log."""
    it = await started(api)
    counted: list[tuple[object, str]] = []
    monkeypatch.setattr(metrics, "count", lambda *what: counted.append(what))
    caplog.set_level(logging.INFO, logger="evergrant.api")
    before = len(await api.records())
    path = urlsplit(it.visitor.sent["redirect_uri"]).path
    stranger = Visitor(api).browser
    for n in range(100):
        await assert_refused(await stranger.get(f"{path}?state=guessed-{n}&code=c"))
        await assert_refused(await stranger.get(f"{path}?code=c&code=d&padding={'x' * 170 * n}"))
    assert len(await api.records()) == before
    await it.assert_untouched(recorded=False)
    assert counted == [(metrics.CALLBACKS_REFUSED, "unknown_state")] * 200
    logged = [it for it in caplog.records if it.message.startswith("callback refused")]
    assert len(logged) == 200
    assert "guessed" not in caplog.text


async def test_a_state_at_another_tenants_address_is_recorded_where_it_belongs(api: Api):
    """The holder of one tenant's state can't write to the audit log of another tenant."""
    it = await started(api)
    foreign = await an_integration(api, name="crm", tenant=OTHER)
    await assert_refused(await it.visitor.come_back(f"/oauth/callback/{foreign.id}", iss=ISSUER))
    async with api.worker.read() as tx:
        assert await audit.page(tx, OTHER, limit=500) == []
    (record,) = await it.records(AuditAction.CALLBACK_REFUSED)
    assert record.object == (await it.consent()).integration_id


async def test_a_refusal_of_a_known_state_is_recorded_and_counted(api: Api, monkeypatch: pytest.MonkeyPatch):
    it = await started(api)
    counted: list[str] = []
    monkeypatch.setattr(metrics, "count", lambda _, outcome: counted.append(outcome))
    await assert_refused(await it.visitor.come_back(iss="https://evil.example"))
    (record,) = await it.records(AuditAction.CALLBACK_REFUSED)
    assert record.object == it.connection_id
    assert counted == ["callback_invalid"]


async def test_rfc9700_4_7_a_state_from_another_browser(api: Api):
    it = await started(api)
    attacker = Visitor(api)
    attacker.provider_url = it.visitor.provider_url
    await assert_refused(await attacker.come_back(iss=ISSUER))
    attacker.browser.cookies.set("__Host-evergrant", "A" * 43, domain="evergrant.test")
    await assert_refused(await attacker.come_back(iss=ISSUER))
    await it.assert_untouched()
    # and the rightful browser still gets through
    answer, _ = await asyncio.gather(it.visitor.come_back(iss=ISSUER), it.worker_finishes())
    assert (await it.visitor.follow(answer)).status_code == 200


async def test_rfc9700_4_7_a_state_that_expired(api: Api):
    it = await started(api)
    api.clock.advance(3601)
    await assert_refused(await it.visitor.come_back(iss=ISSUER), "consent_expired", 409)
    await it.assert_untouched()


async def test_rfc9700_4_7_a_state_that_was_used(api: Api):
    it = await started(api)
    await asyncio.gather(it.visitor.come_back(iss=ISSUER), it.worker_finishes())
    assert await it.signals() == ["consent_granted"]
    again = await it.visitor.come_back(iss=ISSUER, code="another")  # a reload, or the provider's page again
    assert (again.status_code, again.headers["location"]) == (303, urlsplit(it.link).path)
    assert "is connected" in (await it.visitor.follow(again)).text, "the outcome, and nothing new"
    assert await it.signals() == []
    assert len(await it.records(AuditAction.CALLBACK_REFUSED)) == 1
    stranger = Visitor(api)
    stranger.provider_url = it.visitor.provider_url
    await assert_refused(await stranger.come_back(iss=ISSUER, code="another"))


async def test_many_parallel_callbacks_with_one_state_make_one_exchange(api: Api):
    it = await started(api)
    answers = await asyncio.gather(
        *(it.visitor.come_back(iss=ISSUER, code=f"code-{n}") for n in range(12)), it.worker_finishes()
    )
    led_to = {answer.headers["location"] for answer in answers if answer is not None}
    assert led_to == {urlsplit(it.link).path}
    assert await it.signals() == ["consent_granted"]
    assert len(await it.records(AuditAction.CONSENT_GRANTED)) == 1
    assert len(await it.records(AuditAction.CALLBACK_REFUSED)) == 11


async def test_another_integrations_callback_address(api: Api):
    """Mix-up: the redirect URI is distinct per integration and checked on return."""
    it = await started(api)
    second = await an_integration(api, name="other")
    foreign = await an_integration(api, name="crm", tenant=OTHER)
    for integration in (second, foreign):
        await assert_refused(await it.visitor.come_back(f"/oauth/callback/{integration.id}", iss=ISSUER))
    for address in ("int_0000000000000000000000", "int_x", "con_0000000000000000000000"):
        answer = await it.visitor.come_back(f"/oauth/callback/{address}", iss=ISSUER)
        assert answer.status_code in (400, 404)
    await it.assert_untouched()


@pytest.mark.parametrize(
    "iss", ["https://evil.example", "https://idp.example/", "HTTPS://idp.example", "", None]
)
@pytest.mark.parametrize("what", [{"code": "c"}, {"code": None, "error": "access_denied"}])
async def test_rfc9207_2_4_issuer_compared_as_a_plain_string(api: Api, iss: str | None, what: dict):
    """On error responses too; and advertised but missing is refused. The attempt is spent."""
    it = await started(api)
    await assert_refused(await it.visitor.come_back(**{"iss": iss, **what}))
    assert (await it.consent()).status is ConsentStatus.FAILED
    assert await it.signals() == []
    assert await it.records(AuditAction.CALLBACK_REFUSED)
    await assert_refused(await it.visitor.follow(await it.visitor.come_back(iss=ISSUER)))


async def test_a_refusal_before_a_person_could_decide_is_no_denial(api: Api):
    """Some servers say access_denied of a client that may not have the scope, and show no page."""
    it = await started(api, "https://app.example/done")
    answer = await it.visitor.come_back(
        code=None, error="access_denied", error_description="scope not allowed", iss=ISSUER
    )
    shown = await it.visitor.follow(answer)
    assert "declined" not in shown.text
    assert "You can&#39;t repair that: tell the admin" in shown.text
    consent = await it.consent()
    assert (consent.status, consent.failure) == (ConsentStatus.FAILED, ErrorCode.CLIENT_REJECTED)
    assert await it.signals() == [], "a new link works once the client is repaired"
    (record,) = await it.records(AuditAction.CONSENT_FAILED)
    assert record.detail["provider_said"]["description"] == "scope not allowed"


async def test_a_denial_is_a_denial_and_html_in_it_is_never_shown(api: Api):
    it = await started(api)
    api.clock.advance(5)  # a person has read the provider's page
    answer = await it.visitor.come_back(
        code=None,
        error="access_denied",
        error_description="<script>alert(1)</script>",
        error_uri="https://evil.example",
        iss=ISSUER,
    )
    shown = await it.visitor.follow(answer)
    assert "declined" in shown.text
    for echoed in ("<script", "alert(1)", "evil.example"):
        assert echoed not in answer.text + shown.text
    assert await it.signals() == ["consent_denied"]
    assert await it.records(AuditAction.CONSENT_DENIED)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("server_error", "provider_error"),
        ("invalid_scope", "client_rejected"),
        ("<b>x</b>", "provider_error"),
    ],
)
async def test_another_error_ends_the_attempt_and_not_the_connection(api: Api, error: str, code: str):
    it = await started(api)
    answer = await it.visitor.follow(await it.visitor.come_back(code=None, error=error, iss=ISSUER))
    assert code in answer.text
    assert "<b>x</b>" not in answer.text
    assert (await it.consent()).status is ConsentStatus.FAILED
    assert await it.signals() == []


async def test_endpoints_that_changed_meanwhile_get_no_code(api: Api):
    """Code and verifier go to the token endpoint recorded for the attempt, or nowhere."""
    it = await started(api)
    async with api.worker.write() as tx:
        integration = await tx.integrations.by_name(TENANT, "crm")
        assert integration is not None
        moved = ENDPOINTS.model_copy(update={"token_endpoint": "https://evil.example/token"})
        await tx.integrations.replace(
            integration.model_copy(update={"endpoints": moved}), expected=integration.revision
        )
    await assert_refused(await it.visitor.come_back(iss=ISSUER))
    assert await it.signals() == []


async def test_a_revocation_between_link_and_callback(api: Api):
    it = await started(api)
    connection = await api.row(TENANT, it.connection_id)
    await api.change(connection, lambda c: c.revocation_requested("left", api.clock.now()))
    await assert_refused(await it.visitor.come_back(iss=ISSUER), "connection_revoked", 409)
    assert await it.signals() == []


async def test_form_post_comes_again_as_a_get_with_the_cookie(api: Api):
    it = await started(api)
    sent = it.visitor.sent
    body = {"state": sent["state"], "code": "code-1", "iss": ISSUER}
    posted = await api.browser().post(sent["redirect_uri"], data=body)  # Lax: no cookie on this one
    assert posted.status_code == 303
    where = urlsplit(posted.headers["location"])
    assert (where.netloc, where.path) == ("", urlsplit(sent["redirect_uri"]).path)
    assert parse_qs(where.query) == {name: [value] for name, value in body.items()}
    answer, _ = await asyncio.gather(it.visitor.browser.get(posted.headers["location"]), it.worker_finishes())
    assert (await it.visitor.follow(answer)).status_code == 200


async def test_rfc9700_4_11_return_to_gets_the_outcome_and_nothing_else(api: Api):
    it = await started(api, "https://app.example/done?tab=1")
    answer, _ = await asyncio.gather(it.visitor.come_back(iss=ISSUER), it.worker_finishes())
    assert answer.status_code == 303
    expected = f"https://app.example/done?tab=1&connection_id={it.connection_id}&state=active"
    assert answer.headers["location"] == expected


async def test_rfc9700_4_11_a_return_to_that_was_taken_off_the_list_is_not_followed(api: Api):
    it = await started(api, "https://app.example/done")
    app = await api.app_named("asker")
    async with api.worker.write() as tx:
        await tx.access.put_app(app.model_copy(update={"return_to": ()}), expected=app.revision)
    answer, _ = await asyncio.gather(it.visitor.come_back(iss=ISSUER), it.worker_finishes())
    assert answer.status_code == 200
    assert "is connected" in answer.text


async def test_oidc_core_3_1_2_1_a_nonce_is_sent_with_openid_and_kept_as_a_hash(api: Api):
    await an_integration(api)
    key = await api.app_with("asker", Action.CONNECT)
    sent: list[str] = []
    for subject, scopes in (("user-1", ["openid", "read"]), ("user-2", ["read"])):
        it = await sent_away(api, key, subject=subject, scopes=scopes)
        for _ in range(2):
            kept, nonce = (await it.consent()).nonce_hash, it.visitor.sent.get("nonce")
            sent += [nonce] if nonce else []
            assert kept == (hash_of_nonce(nonce) if nonce else None)
            assert nonce is None or nonce not in (it.visitor.sent["state"], kept)
            await it.visitor.go_on(it.link)
    assert len(set(sent)) == 2, "a fresh one for each click, and none where no id token comes"
    messages = str(await api.outbox())
    assert not any(nonce in messages for nonce in sent)
