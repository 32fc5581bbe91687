"""Installs that begin at the provider: a callback without our state attaches nothing, and leads to the app.

RFC 6749 section 10.12, draft-ietf-oauth-security-topics-update section 2.3; ADR 0032.
"""

import logging

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from tests.fakes.api import Api
from tests.fakes.failures import fails
from tests.fakes.visitor import Visitor
from tests.security.pages.test_binding import RETURN, Bound
from tests.security.pages.test_callback import assert_refused, sent_away

STARTS = "app.example/connect/crm"
STORE = {"context": "stores/abc123", "scope": "store_v2_orders", "account_uuid": "u-1"}
ATTACKERS = "code=attackers-code&context=stores%2Fevil1&scope=store_v2_orders&account_uuid=u-1"


async def a_shop(api: Api, **more: object) -> Integration:
    return await api.integration(provider="bigcommerce", binding="app", **more)


async def begun(api: Api) -> Bound:
    """A consent that its app has to confirm; the browser is at BigCommerce."""
    await a_shop(api, params={"app_url": STARTS})
    key = await api.app_with("asker", Action.CONNECT, Action.TOKEN, return_to=(RETURN,))
    it = await sent_away(api, key, Bound, return_to=RETURN)
    it.key = key
    return it


async def test_it_leads_to_the_app_where_our_own_flow_begins(api: Api, caplog: pytest.LogCaptureFixture):
    shop = await a_shop(api, params={"app_url": f"https://{STARTS}"})
    with caplog.at_level(logging.INFO, "evergrant.api"):
        page = await Visitor(api).browser.get(f"/oauth/callback/{shop.id}?{ATTACKERS}")
    assert page.status_code == 200
    assert f'href="https://{STARTS}"' in page.text
    assert "attackers-code" not in page.text
    assert "attackers-code" not in caplog.text
    assert "set-cookie" not in page.headers
    # BigCommerce shows it in a frame of its control panel; it has no form, and its link opens a tab
    assert "x-frame-options" not in page.headers
    assert "frame-ancestors" not in page.headers["content-security-policy"]
    assert "<form" not in page.text
    assert await api.outbox() == []


async def test_without_an_address_of_the_app_the_page_says_where_to_begin(api: Api):
    shop = await a_shop(api)
    page = await Visitor(api).browser.get(f"/oauth/callback/{shop.id}?{ATTACKERS}")
    assert (page.status_code, 'href="http' in page.text) == (200, False)
    assert "Open the app" in page.text


async def test_rfc6749_10_12_an_attackers_code_in_a_browser_with_a_consent_under_way_attaches_nothing(
    api: Api,
):
    """The victim is at BigCommerce; the attacker sends its browser callbacks with own codes."""
    it = await begun(api)
    path = it.visitor.sent["redirect_uri"]
    page = await it.visitor.raw(ATTACKERS)
    assert page.status_code == 200
    await assert_refused(await it.visitor.raw(f"{ATTACKERS}&state="))
    await assert_refused(await it.visitor.raw(f"{ATTACKERS}&state=of-the-attackers-own-consent"))
    posted = await it.visitor.browser.post(path, content=ATTACKERS)
    assert (await it.visitor.follow(posted)).status_code == 200
    assert await it.signals() == []
    consent = await it.consent()
    assert (consent.status, consent.facts) == (ConsentStatus.STARTED, {})
    async with api.worker.read() as tx:
        with fails(ErrorCode.NOT_FOUND):
            await tx.consents.code(consent)
    assert await it.records(AuditAction.CONSENT_RETURNED) == []


async def test_our_own_flow_brings_the_state_back_and_the_app_confirms_it(api: Api):
    it = await begun(api)
    await it.visitor.raw(ATTACKERS)
    assert (await it.confirmed(await it.returns(**STORE))).status_code == 200
    consent = await it.consent()
    expected = {"context": "stores/abc123", "granted": "store_v2_orders", "account_uuid": "u-1"}
    assert consent.facts == expected


async def test_a_provider_that_starts_no_flow_is_refused_as_before(api: Api):
    crm = await api.integration()
    await assert_refused(await Visitor(api).browser.get(f"/oauth/callback/{crm.id}?{ATTACKERS}"))
