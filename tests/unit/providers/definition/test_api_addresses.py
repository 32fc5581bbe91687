"""Where the APIs of the catalogue are, which gateways send tokens to."""

from urllib.parse import urlsplit

import pytest

from evergrant_server.core.errors import Failure
from providers.definition.host_validation import hosts_are_pinned
from providers.definition.parsing import parse_definition
from providers.definition.registry import Registry
from providers.definition.schema_base import PLACEHOLDER
from providers.definition.templates import api_base_url_of

CATALOGUE = Registry.load()
BEST_KNOWN = (
    *("github", "gitlab", "bitbucket", "slack", "google", "gmail", "google-drive", "google-calendar"),
    *("microsoft", "outlook", "onedrive", "microsoft-teams", "salesforce", "hubspot", "zendesk", "intercom"),
    *("notion", "asana", "trello", "jira", "confluence", "linear", "clickup", "monday", "figma", "dropbox"),
    *("box", "stripe", "shopify", "quickbooks", "xero", "mailchimp", "zoom", "discord", "spotify"),
    *("linkedin", "x", "facebook", "pipedrive", "docusign"),
)  # fmt: skip


@pytest.mark.parametrize("name", BEST_KNOWN)
def test_the_best_known_providers_have_an_api_with_a_source(name: str):
    spec = CATALOGUE.get(name)
    field = "api_base_url" if spec.api_base_url else "api_from_reply"
    assert getattr(spec, field) is not None
    named = spec.sources
    assert field in {*named.agreeing, *named.vendor_documentation, *named.by_field}


def test_every_api_is_https_and_stays_on_hosts_of_its_vendor():
    with_an_api = [it for it in CATALOGUE.all() if it.api_base_url or it.api_from_reply]
    assert len(with_an_api) > 240
    for spec in with_an_api:
        assert list(hosts_are_pinned(spec)) == [], spec.name
        if spec.api_base_url:
            url = urlsplit(PLACEHOLDER.sub("x", spec.api_base_url))
            assert (url.scheme, url.query, url.fragment, url.username) == ("https", "", "", None), spec.name


@pytest.mark.parametrize(
    ("said", "host"),
    [
        ("https://acme.my.salesforce.com", "acme.my.salesforce.com"),
        ("https://Acme--Dev.sandbox.my.salesforce.com/", "acme--dev.sandbox.my.salesforce.com"),
        *((it, None) for it in ("https://evil.example", "http://acme.my.salesforce.com", "", None)),
        *((it, None) for it in ("a.salesforce.com:80", "https://x@a.salesforce.com", "a.salesforce.com/x")),
        *((it, None) for it in ("evilsalesforce.com", "a.salesforce.com#", "salesforce.com.evil.example")),
    ],
)  # fmt: skip
def test_a_host_that_a_reply_names_has_to_be_the_vendors(said: str | None, host: str | None):
    found = api_base_url_of(CATALOGUE.get("salesforce"), {}, {"instance_url": said})
    assert found == (host and f"https://{host}/services/data")


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_base_url": "https://api.example.com/?a=b"},
        {"api_from_reply": {"metadata": "nowhere", "pattern": "^a$"}},
        {"api_from_reply": {"metadata": "host", "pattern": "a"}},
        {"api_from_reply": {"metadata": "host", "pattern": "^a$", "path": "/../x"}},
        {"api_from_reply": {"metadata": "host", "pattern": "^a$"}, "api_base_url": "https://api.example.com"},
    ],
)
def test_an_address_that_is_refused(wrong: dict):
    whole = {
        "name": "acme",
        "display_name": "Acme",
        "auth_modes": ["authorization_code"],
        "authorization_endpoint": "https://acme.com/a",
        "token_endpoint": "https://acme.com/t",
        "response": {"metadata_paths": ["host"]},
        **wrong,
    }
    with pytest.raises(Failure, match="api_"):
        parse_definition(whole, "a test")


def test_a_pattern_that_takes_hosts_of_others_is_named():
    loose = CATALOGUE.get("pipedrive").api_from_reply
    assert loose is not None
    spec = CATALOGUE.get("pipedrive").model_copy(
        update={"api_from_reply": loose.model_copy(update={"pattern": r"^[a-z.]+$"})}
    )
    assert [field for field, _, _ in hosts_are_pinned(spec)] == ["api_from_reply.pattern"]
