"""The authorization URL: PKCE, scopes, and template parameters. The vectors show the providers' formats."""

import base64
import hashlib
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from evergrant_server.core.connections.flow import TokenTarget
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.templates import client_auth_of, definition_endpoints
from providers.requests.authorization_url import (
    account_params,
    asks_for_id_token,
    build_authorization_url,
    new_random_value,
    sends_nonce,
)
from tests.unit.providers.samples import an_integration, fails, spec_like

REDIRECT = "https://evergrant.example/oauth/callback/int_1"
STATE, VERIFIER = Secret("s" * 43), Secret("v" * 43)


def url_for(spec: ProviderSpec, integration: Integration | None = None, **asked: Any) -> str:
    plain = {"state": STATE, "verifier": VERIFIER, "scopes": ("read", "write")}
    integration = integration or an_integration()
    return build_authorization_url(spec, integration, redirect_uri=REDIRECT, **(plain | asked))


def query_of(url: str) -> dict[str, str]:
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    assert len(pairs) == len(dict(pairs)), "a parameter twice"
    return dict(pairs)


def test_rfc7636_4_1_and_oidc_core_15_5_2_random_values() -> None:
    values = {new_random_value().reveal() for _ in range(100)}
    assert len(values) == 100
    for value in values:
        assert re.fullmatch(r"[A-Za-z0-9\-._~]{43,128}", value)
        assert len(base64.urlsafe_b64decode(value + "=")) == 32


@pytest.mark.parametrize("verifier", ["v" * 42, "v" * 129, "v" * 42 + " ", STATE.reveal(), ""])
def test_rfc7636_4_1_invalid_verifier_refused(verifier: str) -> None:
    with fails(ErrorCode.INTERNAL):
        url_for(spec_like(), verifier=Secret(verifier))


def test_rfc8707_2_1_resources_audience_and_dpop_jkt() -> None:
    resources = ("https://a.example", "https://b.example/x?y")
    target = TokenTarget(resources=resources, audience="api")
    asked = parse_qsl(urlsplit(url_for(spec_like(), target=target, dpop_jkt="thumb")).query)
    assert tuple(value for name, value in asked if name == "resource") == resources
    assert {("audience", "api"), ("dpop_jkt", "thumb")} <= set(asked)


def test_hex_challenge_and_empty_scope() -> None:
    hexed = query_of(url_for(spec_like(pkce_challenge_encoding="hex")))
    assert hexed["code_challenge"] == hashlib.sha256(VERIFIER.reveal().encode()).hexdigest()
    assert "scope" not in query_of(url_for(spec_like(), scopes=()))


def test_default_scopes() -> None:
    spec = spec_like(default_scopes=["theirs"])
    assert query_of(url_for(spec, scopes=()))["scope"] == "theirs"
    ours = an_integration(default_scopes=("ours",))
    assert query_of(url_for(spec, ours, scopes=()))["scope"] == "ours"


@pytest.mark.parametrize("scope", ["two words", "", 'quo"te', "back\\slash", "new\nline", "ümlaut"])
def test_rfc6749_3_3_invalid_scope_refused(scope: str) -> None:
    with fails(ErrorCode.INVALID_REQUEST, field="scopes"):
        url_for(spec_like(), scopes=(scope,))


def test_app_parameters_must_be_listed() -> None:
    spec = spec_like(authorization_params_from_request=["login_hint"])
    assert query_of(url_for(spec, params={"login_hint": "ann"}))["login_hint"] == "ann"
    for name in ("redirect_uri", "state", "scope", "prompt"):
        with pytest.raises(Failure, match=name):
            url_for(spec, params={name: "x"})


def test_a_parameter_that_the_integration_may_omit() -> None:
    spec = spec_like(
        authorization_params={"organization": "{org}"},
        template_params={"org": {"pattern": "^[a-z]+$", "optional": True}},
    )
    assert "organization" not in query_of(url_for(spec))
    assert query_of(url_for(spec, an_integration(params={"org": "acme"})))["organization"] == "acme"
    with fails(ErrorCode.INVALID_REQUEST, field="params.org"):
        url_for(spec, an_integration(params={"org": "A"}))


HOSTED = {
    "authorization_endpoint": "https://{sub}.acme.example/authorize",
    "token_endpoint": "https://{sub}.acme.example/token",
    "template_params": {
        "sub": {"pattern": "^[a-z0-9-]{1,63}$", "normalise": ["lower", "underscore_to_hyphen"]}
    },
}


def test_template_parameter_normalised_and_filled_in() -> None:
    endpoints = definition_endpoints(spec_like(**HOSTED), {"sub": "My_Shop"})
    assert endpoints.token_endpoint == "https://my-shop.acme.example/token"


@pytest.mark.parametrize(
    "value",
    ["", "a.b", "a/b", "evil.example/#", "a@b", "a%2f", "a\n", "a b", "{sub}", "x" * 64, "a\\b", "a?b", "ü"],
)
def test_unsafe_template_parameter_refused(value: str) -> None:
    with fails(ErrorCode.INVALID_REQUEST, field="params.sub"):
        definition_endpoints(spec_like(**HOSTED), {"sub": value})


@pytest.mark.parametrize("params", [{}, {"sub": "a", "other": "b"}])
def test_missing_or_unknown_template_parameter_named(params: dict[str, str]) -> None:
    with fails(ErrorCode.INVALID_REQUEST, field="params.other" if params else "params.sub"):
        definition_endpoints(spec_like(**HOSTED), params)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "a..b", "host", "-a.example", "h.example/x"]
)
def test_arbitrary_host_must_be_a_public_name(host: str) -> None:
    fields = HOSTED | {"template_params": {"sub": {"kind": "arbitrary_host"}}}
    with pytest.raises(Failure):
        definition_endpoints(spec_like(**fields), {"sub": host})


@pytest.mark.parametrize(
    ("offered", "own", "expected"),
    [
        ((), None, "client_secret_basic"),
        (("client_secret_post",), None, "client_secret_post"),
        (("client_secret_post", "client_secret_basic"), None, "client_secret_basic"),
        (("private_key_jwt",), None, "client_secret_basic"),
        (("client_secret_basic",), "none", "none"),
    ],
)
def test_client_authentication_of_a_discovered_server(
    offered: tuple[str, ...], own: str | None, expected: str
) -> None:
    endpoints = Endpoints(authorization_endpoint="a", token_endpoint="t", token_auth_methods=offered)
    integration = an_integration(endpoints=endpoints, client_auth=own)
    assert client_auth_of(spec_like(discovery=True), integration) == expected


def test_oidc_core_3_1_2_1_nonce_with_an_id_token() -> None:
    crm, hybrid = an_integration(), spec_like(authorization_params={"response_type": "code id_token"})
    assert asks_for_id_token(spec_like(), crm, ("openid", "read"))
    assert asks_for_id_token(spec_like(default_scopes=("openid",)), crm, ())
    assert asks_for_id_token(hybrid, crm, ("read",))
    assert not asks_for_id_token(spec_like(), crm, ("read",))
    assert not asks_for_id_token(spec_like(), crm, ("openid.profile",))
    assert sends_nonce(spec_like(), crm, ("openid",))
    assert not sends_nonce(spec_like(id_token_nonce=False), crm, ("openid",))


@pytest.mark.parametrize(
    ("scopes", "hint", "mismatch", "sent"),
    [
        (("openid",), "ann", False, {"login_hint": "ann"}),
        (("openid",), None, True, {"prompt": "consent select_account"}),
        (("read",), "ann", True, {}),
    ],
)
def test_oidc_core_3_1_2_1_the_account_is_named_to_servers_that_know_the_parameters(
    scopes: tuple[str, ...], hint: str | None, mismatch: bool, sent: dict[str, str]
) -> None:
    spec = spec_like(authorization_params={"prompt": "consent"})
    assert account_params(spec, an_integration(), scopes, login_hint=hint, select_account=mismatch) == sent
    listed = spec_like(authorization_params_from_request=("login_hint",))
    known = account_params(listed, an_integration(), ("read",), login_hint="ann", select_account=True)
    assert known == {"login_hint": "ann"}


def test_nonce_takes_precedence_over_the_definitions_own() -> None:
    spec = spec_like(authorization_params={"nonce": "always-the-same"})
    assert query_of(url_for(spec, nonce=Secret("n" * 43)))["nonce"] == "n" * 43
    assert "nonce" not in query_of(url_for(spec_like()))


@pytest.mark.parametrize("offered", [True, False])
@pytest.mark.parametrize("scopes", [("openid", "read"), ("read",)])
def test_oidc_core_11_offline_access_where_a_discovered_server_offers_it(
    offered: bool, scopes: tuple[str, ...]
) -> None:
    spec = spec_like(discovery=True, offline_scope="offline_access")
    there = {"authorization_endpoint": "https://a.example/a", "token_endpoint": "https://a.example/t"}
    found = an_integration(endpoints=Endpoints(**there, offline_access=offered))
    asked = query_of(url_for(spec, found, scopes=scopes))
    assert asked["scope"].split() == [*scopes, *(["offline_access"] if offered else [])]
    assert asked.get("prompt") == ("consent" if offered and "openid" in scopes else None)
