"""What a callback says beside its code is checked before any use, and a signed one before anything else.

The definitions are the catalogue's own; nothing here reaches a provider.
"""

import hashlib
import hmac
from urllib.parse import parse_qsl, urlsplit

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.secret import Secret
from tests.fakes.api import TENANT, Api
from tests.security.pages.test_callback import Started, sent_away

SECRET = "hush-hush"  # what tests.fakes.api gives every integration


class Sent(Started):
    """A browser that was sent to a provider of the catalogue."""

    async def comes_back(self, **facts: str) -> Consent:
        """The callback page waits for a worker, and there is none: what was written is looked at."""
        await self.visitor.come_back(**facts)
        return await self.consent()

    async def refused(self, why: str, **facts: str) -> Consent:
        answer = await self.visitor.come_back(**facts)
        assert (answer.status_code, "callback_invalid" in answer.text) == (400, True), answer.text
        record = (await self.records(AuditAction.CALLBACK_REFUSED))[0]
        assert why in str(record.detail["message"])
        return await self.consent()

    def signed(self, secret: str = SECRET, **facts: str) -> dict[str, str]:
        query = {"state": self.visitor.sent["state"], "code": "code-1", **facts}
        message = "&".join(f"{name}={query[name]}" for name in sorted(query))
        digest = hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()
        return {**facts, "hmac": digest}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evergrant_server.api.connections.consents.EXCHANGE_WAIT_S", 0.0)


async def sent(api: Api, provider: str, **integration: object) -> Sent:
    await api.integration(provider=provider, default_scopes=(), **integration)
    key = await api.app_with("asker", Action.CONNECT)
    return await sent_away(api, key, Sent)


INTUIT = "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer"
EU = {"location": "eu", "accounts-server": "https://accounts.zoho.eu"}
EU_KEPT = {"location": "eu", "accounts_server": "accounts.zoho.eu"}
ACME = "https://acme.retail.lightspeed.app/api/1.0/token"


@pytest.mark.parametrize(
    ("provider", "facts", "kept", "token_endpoint"),
    [
        ("quickbooks", {"realmId": "9130357"}, {"realmId": "9130357"}, INTUIT),
        ("zoho", EU, EU_KEPT, "https://accounts.zoho.eu/oauth/v2/token"),
        ("zoho", {}, {}, "https://accounts.zoho.com/oauth/v2/token"),
        ("lightspeed-retail", {"domain_prefix": "Acme"}, {"domain_prefix": "acme"}, ACME),
    ],
)
async def test_facts_are_bound_to_the_consent(
    api: Api, provider: str, facts: dict[str, str], kept: dict[str, str], token_endpoint: str
):
    it = await sent(api, provider)
    consent = await it.comes_back(**facts)
    assert consent.status is ConsentStatus.CODE_RECEIVED
    assert (consent.facts, consent.token_endpoint) == (kept, token_endpoint)


async def test_ssrf_a_host_that_is_not_the_vendors_is_refused(api: Api):
    """The other notations are in tests/unit/providers/requests/test_callback.py."""
    host = "https://accounts.zoho.eu.evil.example"
    it = await sent(api, "zoho")
    consent = await it.refused("accounts_server is malformed", **{"accounts-server": host})
    assert consent.status is ConsentStatus.FAILED
    assert consent.token_endpoint == "https://accounts.zoho.com/oauth/v2/token"


async def test_a_part_of_the_token_endpoint_has_to_come(api: Api):
    it = await sent(api, "lightspeed-retail")
    assert "{domain_prefix}" in str((await it.consent()).token_endpoint)
    await it.refused("domain_prefix is not known yet")


async def test_scopes_of_a_callback_are_never_more_than_were_asked_for(api: Api):
    it = await sent(api, "strava")
    consent = await it.comes_back(scope="read,activity:read_all")
    assert consent.granted_scopes == ("read",)


# --- signed callbacks -------------------------------------------------------------------------

SHOP = {"shop": "acme.myshopify.com", "timestamp": "1337178173", "host": "YWNtZQ"}


async def test_a_signed_callback_is_believed(api: Api):
    it = await sent(api, "shopify", params={"shop": "acme"})
    consent = await it.comes_back(**it.signed(**SHOP))
    assert consent.status is ConsentStatus.CODE_RECEIVED
    assert consent.facts == {"shop": "acme.myshopify.com"}


async def test_the_secret_before_a_rotation_signs_too(api: Api):
    it = await sent(api, "shopify", params={"shop": "acme"})
    async with api.worker.write() as tx:
        crm = await tx.integrations.by_name(TENANT, "crm")
        assert crm is not None
        until = api.clock.now().replace(year=api.clock.now().year + 1)
        await tx.integrations.rotate_secret(crm, Secret("the next one"), until=until, expected=crm.revision)
    assert (await it.comes_back(**it.signed(**SHOP))).status is ConsentStatus.CODE_RECEIVED


async def test_a_bad_signature_ends_nothing(api: Api):
    """Whoever sent it isn't the provider: its own callback still counts."""
    it = await sent(api, "shopify", params={"shop": "acme"})
    good = it.signed(**SHOP)
    for bad in (
        SHOP,
        good | {"hmac": ""},
        good | {"hmac": "0" * 64},
        good | {"hmac": "é" * 64},
        it.signed("another secret", **SHOP),
        good | {"shop": "evil.myshopify.com"},
        good | {"code": "injected"},
        good | {"more": "1"},
        {"error": "access_denied", "code": "", "hmac": "x"},
    ):
        assert (await it.refused("signature", **bad)).status is ConsentStatus.STARTED
    twice = [*parse_qsl(urlsplit(it.visitor.sent["redirect_uri"]).query), *good.items()]
    query = "&".join(f"{name}={value}" for name, value in [*twice, ("hmac", good["hmac"])])
    await it.visitor.raw(f"state={it.visitor.sent['state']}&code=code-1&{query}")
    assert (await it.consent()).status is ConsentStatus.STARTED
    assert (await it.comes_back(**good)).status is ConsentStatus.CODE_RECEIVED


async def test_separators_in_a_value_cannot_make_two_queries_read_the_same(api: Api):
    """Signed: host=a&shop=b as two parameters. Sent: one parameter that holds both."""
    it = await sent(api, "shopify", params={"shop": "acme"})
    good = it.signed(host="a", shop="acme.myshopify.com")
    await it.refused("signature", host="a&shop=acme.myshopify.com", hmac=good["hmac"])


async def test_a_signed_callback_for_another_shop_is_refused(api: Api):
    it = await sent(api, "shopify", params={"shop": "acme"})
    await it.refused("another account", **it.signed(**SHOP | {"shop": "other.myshopify.com"}))
