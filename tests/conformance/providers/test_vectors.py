"""One exchange per provider: what must be sent, a reply in its documented shape, what must be read.

A vector is `vectors/<provider>.yaml`; docs/guide/adding-a-provider.md describes it. Requests go
over a real socket to a server on loopback; a provider's host becomes the first part of the path.
"""

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import httpx2
import pytest

from docs.generate import DOCS
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import Failure
from evergrant_server.core.provider_words import ReplyFailure
from evergrant_server.core.secret import Secret
from providers.definition.parsing import parse_yaml, parse_yaml_definition
from providers.definition.registry import Registry
from providers.definition.templates import api_base_url_of
from providers.definition.validation import problems_of
from providers.requests.accounts import read_lookup
from providers.requests.authorization_url import build_authorization_url
from providers.requests.callback import read_callback
from providers.responses.error_mapping import read_revocation
from tests.conformance.providers.exchanges import (
    REDIRECT,
    SECRETS,
    Exchange,
    as_read,
    assert_further,
    assert_request,
    assert_tokens,
    minted,
    oauth1_read,
    raw_reply,
    send,
)
from tests.fakes.providers.scripted_provider import ScriptedProvider

GUIDE = DOCS / "guide" / "adding-a-provider.md"
VECTORS = Path(__file__).parent / "vectors"
REGISTRY = Registry.load()


@pytest.fixture(params=(*REGISTRY.names(), GUIDE.name))
def exchange(request: pytest.FixtureRequest) -> Exchange:
    if request.param == GUIDE.name:
        return the_guides()
    vector = parse_yaml((VECTORS / f"{request.param}.yaml").read_text(encoding="utf-8"))
    return Exchange(REGISTRY.get(request.param), vector)


def the_guides() -> Exchange:
    """What a newcomer copies from the page has to work as it stands."""
    definition, vector = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    spec = parse_yaml_definition(definition, GUIDE.name)
    assert problems_of(spec, GUIDE.name) == []
    return Exchange(spec, parse_yaml(vector))


def test_authorization_url(exchange: Exchange) -> None:
    if not exchange.speaks_code:
        assert "authorize" not in exchange.vector
        return
    url = build_authorization_url(
        exchange.spec,
        exchange.integration,
        redirect_uri=REDIRECT,
        state=Secret(SECRETS["<state>"]),
        verifier=Secret(SECRETS["<verifier>"]),
        scopes=exchange.vector["scopes"],
        slot_scopes=exchange.vector.get("slot_scopes"),
    )
    expected = exchange.vector["authorize"]
    url = url.replace(f"#{expected['route']}?", "?") if "route" in expected else url
    url, _, fragment = url.partition("#")
    address, _, query = url.partition("?")
    assert (address, fragment) == (expected["url"], expected.get("fragment", ""))
    pairs = parse_qsl(query, keep_blank_values=True)
    assert dict(pairs) == expected["query"]
    assert len(pairs) == len(expected["query"])
    if "order" in expected:
        assert [name for name, _ in pairs][: len(expected["order"])] == expected["order"]
    assert expected.get("raw", "") in query


@pytest.mark.parametrize("kind", ["exchange", "post_exchange", "refresh", "revoke"])
async def test_request_and_reply(exchange: Exchange, kind: str) -> None:
    expected = exchange.vector.get(kind)
    if not exchange.speaks_code:
        assert expected is None
        return
    if expected is None:
        spec = exchange.spec
        supported = {
            "revoke": spec.has_revocation,
            "refresh": spec.refresh_supported,
            "post_exchange": spec.post_token_exchange is not None,
        }
        assert not supported[kind], f"the vector has no {kind}, and the provider has"
        return
    async with ScriptedProvider() as server:
        where = expected["request"]["url"].removeprefix("https://").partition("?")[0].strip("/")
        server.script(raw_reply(expected["reply"]), at=where)
        reply = await send(exchange, kind, server)
        assert len(server.calls) == 1
        assert_request(server.calls[0], expected["request"])
    if kind == "revoke":
        for confirmed in (reply, *map(as_read, expected.get("gone", []))):
            read_revocation(exchange.spec, confirmed)
    else:
        assert_tokens(exchange.read(reply, refreshing=kind != "exchange"), expected["tokens"])
    if kind == "exchange":
        assert_further(exchange.spec, reply, expected)


async def test_client_grants_and_oauth1(exchange: Exchange) -> None:
    grants = exchange.vector.get("grants", {})
    assert grants or exchange.speaks_code
    for name, expected in grants.items():
        if name == Flow.OAUTH1:
            assert_tokens(await oauth1_read(exchange, expected), expected["tokens"])
            continue
        tokens = as_read(expected["reply"])
        if name in (Flow.CLIENT_CREDENTIALS, Flow.JWT_BEARER):
            tokens = await minted(exchange, Flow(name), expected)
        assert_tokens(exchange.read(tokens, refreshing=False), expected["tokens"])


def test_refusals(exchange: Exchange) -> None:
    assert exchange.vector["refusals"]
    for refusal in exchange.vector["refusals"]:
        with pytest.raises(Failure) as raised:
            exchange.read(as_read(refusal["reply"]), refreshing=True)
        assert raised.value.code.value == refusal["code"], refusal
        if "retry_after" in refusal:
            assert raised.value.retry_after == refusal["retry_after"], refusal


def test_a_refusals_words_are_found_and_quote_no_secret(exchange: Exchange) -> None:
    sent = httpx2.Request("POST", "https://provider.example/token", data=SECRETS)
    for refusal in exchange.vector["refusals"]:
        with pytest.raises(ReplyFailure) as raised:
            exchange.read(replace(as_read(refusal["reply"]), request=sent), refreshing=True)
        said = raised.value.said
        assert said is not None
        assert not any(secret in str(said) for secret in SECRETS.values()), said
        assert str(said) or refusal["code"] != "grant_rejected" or not refusal["reply"].get("json"), refusal


def test_further_replies(exchange: Exchange) -> None:
    for odd in exchange.vector.get("replies", []):
        refreshing, reply = odd["to"] == "refresh", as_read(odd["reply"])
        assert_tokens(exchange.read(reply, refreshing=refreshing), odd["tokens"])
        if not refreshing:
            assert_further(exchange.spec, reply, odd)


def test_callbacks(exchange: Exchange) -> None:
    for callback in exchange.vector.get("callbacks", []):
        query = [(name, str(value)) for name, value in callback["query"].items()]
        read = read_callback(
            query,
            expected_issuer=None,
            iss_required=False,
            spec=exchange.spec,
            params=exchange.integration.params,
            requested=exchange.scopes,
        )
        code = read.code.reveal() if read.code else None
        assert (code, read.denied) == (callback.get("code"), callback.get("denied", False))
        assert read.metadata == callback.get("metadata", {})
        assert read.scopes == (tuple(callback["scopes"]) if "scopes" in callback else None)


def test_accounts_and_api_base_url(exchange: Exchange) -> None:
    vector, spec = exchange.vector, exchange.spec
    facts = dict(exchange.facts)
    for lookup, replies in zip(spec.post_auth, vector.get("lookups", []), strict=True):
        for expected in replies:
            options = read_lookup(spec, lookup, as_read(expected["reply"]))
            assert [it.model_dump() for it in options] == expected["options"]
            facts |= options[0].metadata if options else {}
    if "api" in vector:
        assert api_base_url_of(spec, exchange.integration.params, facts) == vector["api"]
