"""A connection without a grant: the flow goes on to its provider, and comes back to the client."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from tests.fakes.api import TENANT, Api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import AgentUser, code_row, csrf_in, put_rule, registered, sent_back
from tests.security.people import client_at, worker_for


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        worker_for(api, issuer)
        await client_at(api, issuer)
        await api.app_with("agents", Action.PROXY)
        await put_rule(api, await api.app_with("boss", Action.ADMIN))
        yield issuer


async def consents_of(api: Api) -> list[Consent]:
    async with api.worker.read() as tx:
        records = await api.records(AuditAction.CONSENT_CONFIRMED)
        given = [await tx.consents.get(TENANT, it.detail["consent_id"]) for it in records]
    return [it for it in given if it is not None]


async def test_the_flow_goes_on_to_the_provider_and_comes_back_with_a_code(api: Api, issuer: LoginIssuer):
    connection = await api.connection(await api.integration())
    client = await registered(api)
    user = AgentUser(api, issuer)
    shown = await user.ask(user.url(client, connection))
    assert "Allow, and continue to GitLab" in shown.text
    page, csrf = user.page, csrf_in(shown)
    answer = user.left(await user.press(page, csrf))
    assert (answer.status_code, user.provider_url.startswith("https://gitlab.com/oauth/authorize?")) == (
        200,
        True,
    )
    (consent,) = await consents_of(api)
    assert (consent.binding, consent.status) == (Binding.OIDC, ConsentStatus.STARTED)
    assert (await user.press(page, csrf)).status_code == 400, "decided once"
    (record,) = await api.records(AuditAction.CONSENT_CONFIRMED)
    assert (record.detail["login"], record.detail["binding"]) == ("staff", "oidc")
    back = await user.come_back(iss="https://gitlab.com")
    assert back.status_code == 303, back.text
    await api.install(connection, "at-1")
    async with api.worker.write() as tx:
        (consent,) = await consents_of(api)
        done = consent.model_copy(update={"status": ConsentStatus.DONE})
        await tx.consents.replace(done, expected=consent.revision)
    answer = await user.ask(back.headers["location"])
    got = sent_back(answer)
    assert (got["state"], await code_row(api, got["code"]) is not None) == ("of-the-client", True)
    again = await user.ask(user.url(client, connection))
    assert "code" in sent_back(again), "the grant is there: one redirect"


async def test_a_person_who_declines_at_the_provider_gives_no_code(api: Api, issuer: LoginIssuer):
    connection = await api.connection(await api.integration())
    user = AgentUser(api, issuer)
    await user.decide(await user.ask(user.url(await registered(api), connection)))
    api.clock.advance(5)  # a person has read the provider's page
    back = await user.raw(f"state={user.sent['state']}&error=access_denied")
    assert back.status_code == 303, back.text
    got = sent_back(await user.ask(back.headers["location"]))
    assert (got["error"], got["state"]) == ("access_denied", "of-the-client")
    assert await api.records(AuditAction.AUTHORIZATION_GIVEN) == []


async def test_a_link_that_a_login_has_proven_is_of_that_browser_from_its_first_moment(
    api: Api, issuer: LoginIssuer, monkeypatch: pytest.MonkeyPatch
):
    """Else whoever got the link, from the app that leases, could bind an account without a login."""

    async def cut(*_: object) -> None:
        raise Failure(ErrorCode.STORE_UNAVAILABLE)

    monkeypatch.setattr("evergrant_server.api.pages.authorization.upstream.send_away", cut)
    connection = await api.connection(await api.integration())
    user = AgentUser(api, issuer)
    await user.decide(await user.ask(user.url(await registered(api), connection)))
    (consent,) = await consents_of(api)
    assert (consent.status, consent.browser_hash is None) == (ConsentStatus.STARTED, False)
    async with api.store.read() as tx:
        link = (await tx.consents.connect_link(consent)).reveal()
    stranger = AgentUser(api, issuer)
    answer = await stranger.browser.get(f"/connect/{link}")
    assert (answer.status_code, "gitlab.com/oauth" in answer.text) == (400, False), answer.text
