"""Which hosts get secrets, how a host is written, and what is within a registrable domain."""

from typing import Any

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import NOTHING_PINNED, Endpoints, PinnedHosts
from providers.definition.schema import ProviderSpec
from providers.requests.hosts import (
    host_of,
    hosts_to_pin,
    is_pinned,
    require_definition_host,
    require_granted_host,
    secret_hosts,
    waiting_hosts,
)
from tests.fakes.failures import fails
from tests.unit.providers.samples import an_integration

ACME: dict[str, Any] = {
    "name": "acme",
    "display_name": "Acme",
    "auth_modes": ["authorization_code"],
    "authorization_endpoint": "https://pages.acme.example/authorize",
    "token_endpoint": "https://login.acme.com/token",
    "revocation_endpoint": "https://api.acme.com/revoke",
}
SHOPS = {
    "token_endpoint": "https://{shop}.shops.com/token",
    "template_params": {"shop": {"pattern": "^[a-z]+$", "source": "callback"}},
}


def acme(**more: Any) -> ProviderSpec:
    return ProviderSpec.model_validate(ACME | more)


def written(spec: ProviderSpec, **params: str) -> list[tuple[str, str | None]]:
    return secret_hosts(spec, an_integration("acme"), params)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://IdP.Example:443/token?x=1", "idp.example"),
        ("https://idp.example./token", "idp.example"),
        ("https://idp.example:8443/token", "idp.example:8443"),
        ("https://user@idp.example/token", "idp.example"),
        ("https://bücher.example/token", "xn--bcher-kva.example"),
        ("http://127.0.0.1:9000/token", "http://127.0.0.1:9000"),
        ("https://[::1]:9/token", "[::1]:9"),
    ],
)
def test_a_host_is_written_as_the_client_connects_to_it(url: str, host: str):
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("host", "pinned", "within"),
    [
        ("login.acme.com", "login.acme.com", True),
        ("api.acme.com", "login.acme.com", True),
        ("acme.com", "login.acme.com", True),
        ("login.acme.co.uk", "api.acme.co.uk", True),
        ("evil.co.uk", "acme.co.uk", False),
        ("acme.com.evil.com", "acme.com", False),
        ("b.github.io", "a.github.io", False),  # the private section of the list
        ("x.a.github.io", "a.github.io", True),
        ("api.acme.com:8443", "login.acme.com", False),
        ("http://api.acme.com", "login.acme.com", False),
        ("192.0.2.2", "192.0.2.1", False),
        ("192.0.2.1", "192.0.2.1", True),
        ("[2001:db8::2]", "[2001:db8::1]", False),
        ("other", "intranet", False),
        ("b.corp.unknowntld", "a.corp.unknowntld", False),
        ("a.corp.unknowntld", "a.corp.unknowntld", True),
        ("com", "com.", False),
    ],
)
def test_a_host_is_pinned_with_its_registrable_domain(host: str, pinned: str, within: bool):
    assert is_pinned(host, (pinned,)) is within


def test_the_hosts_of_a_definition_are_those_that_get_secrets():
    exchange = {"kind": "access_token_exchange", "grant_type": "x", "url": "https://graph.acme.com/x"}
    spec = acme(refresh=exchange, introspection_endpoint="https://see.acme.com/introspect")
    assert [host for host, _ in written(spec)] == [
        "api.acme.com",
        "graph.acme.com",
        "login.acme.com",
        "see.acme.com",
    ]


def test_discovered_endpoints_take_the_place_of_the_definitions():
    found = Endpoints(
        token_endpoint="https://a.idp.com/token",
        pushed_authorization_request_endpoint="https://b.idp.com/par",
        device_authorization_endpoint="https://c.idp.com/device",
        mtls_aliases={"token_endpoint": "https://mtls.idp.com/token"},
    )
    hosts = secret_hosts(acme(), an_integration("acme", endpoints=found), {})
    assert [host for host, _ in hosts] == ["a.idp.com", "b.idp.com", "c.idp.com", "mtls.idp.com"]


def test_a_host_that_a_callback_names_is_written_with_its_rule():
    spec = acme(**SHOPS)
    (_, _), (pattern, unknown) = written(spec)[0], written(spec)[1]
    assert (pattern.endswith("}.shops.com"), unknown) == (True, None)
    assert written(spec, shop="mine")[1] == (pattern, "mine.shops.com")
    looser = {**SHOPS, "template_params": {"shop": {"pattern": "^[a-z.]+$", "source": "callback"}}}
    assert written(acme(**looser))[1][0] != pattern


def test_a_grant_goes_where_it_was_made_and_where_an_operator_has_accepted():
    crm, pins = an_integration("acme"), PinnedHosts(("login.acme.com",), ("new.example",))
    for url in ("https://api.acme.com/token", "https://new.example/token"):
        require_granted_host(url, crm, pins)
    with fails(ErrorCode.HOST_NOT_ACCEPTED, f"accept-hosts {crm.id} --host 'evil.com'"):
        require_granted_host("https://evil.com/token", crm, pins)


def test_facts_that_were_changed_by_hand_send_no_grant_to_another_shop():
    pins = hosts_to_pin(acme(**SHOPS), an_integration("acme"), {"shop": "mine"}, NOTHING_PINNED)
    assert pins.grant == ("api.acme.com", "mine.shops.com")
    strict = PinnedHosts(("mine.github.io",), ("{shop#00000000}.github.io",))
    with fails(ErrorCode.HOST_NOT_ACCEPTED):
        require_granted_host("https://theirs.github.io/token", an_integration("acme"), strict)


def test_a_new_grant_is_asked_for_at_pinned_hosts_of_its_definition():
    crm, spec = an_integration("acme"), acme()
    pins = PinnedHosts(None, hosts_to_pin(spec, crm, {}, NOTHING_PINNED).integration)
    require_definition_host("https://login.acme.com/token", spec, crm, {}, pins)
    moved = acme(token_endpoint="https://evil.com/token")
    assert waiting_hosts(moved, crm, pins.integration or ()) == ["evil.com"]
    for url in ("https://evil.com/token", "https://third.com/token"):
        with fails(ErrorCode.HOST_NOT_ACCEPTED):
            require_definition_host(url, moved, crm, {}, pins)
    require_definition_host("https://evil.com/token", moved, crm, {}, NOTHING_PINNED)  # its first grant
    with fails(ErrorCode.HOST_NOT_ACCEPTED):  # what a consent's row says is no reason
        require_definition_host("https://third.com/token", moved, crm, {}, NOTHING_PINNED)
    assert hosts_to_pin(moved, crm, {}, pins).grant == ("api.acme.com",)


def test_a_looser_rule_waits_although_its_definition_has_the_same_url():
    crm = an_integration("acme")
    pins = PinnedHosts(None, hosts_to_pin(acme(**SHOPS), crm, {}, NOTHING_PINNED).integration)
    url, mine = "https://mine.shops.com/token", {"shop": "mine"}
    require_definition_host(url, acme(**SHOPS), crm, mine, pins)
    # a placeholder alone in front of a public suffix has no registrable domain in common
    wild = {"token_endpoint": "https://{shop}/token"}
    first = wild | {"template_params": {"shop": {"pattern": r"^[a-z]+\.vendor\.com$", "source": "callback"}}}
    loose = wild | {"template_params": {"shop": {"pattern": r"^[a-z.]+$", "source": "callback"}}}
    pins = PinnedHosts(None, hosts_to_pin(acme(**first), crm, {}, NOTHING_PINNED).integration)
    require_definition_host("https://a.vendor.com/t", acme(**first), crm, {"shop": "a.vendor.com"}, pins)
    with fails(ErrorCode.HOST_NOT_ACCEPTED):
        require_definition_host("https://evil.com/t", acme(**loose), crm, {"shop": "evil.com"}, pins)
