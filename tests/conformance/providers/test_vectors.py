"""One exchange per provider: what must be sent, a reply in its documented shape, what must be read.

A vector is `vectors/<provider>.yaml`; docs/guide/adding-a-provider.md describes it. Requests go
over a real socket to a server on loopback; a provider's host becomes the first part of the path.
"""

import re
from functools import cache, partial
from urllib.parse import parse_qsl

import pytest

from docs.generate import DOCS
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.provider_words import ReplyFailure
from evergrant_server.core.secret import Secret
from providers.definition.parsing import parse_yaml, parse_yaml_definition
from providers.definition.registry import Registry
from providers.definition.templates import api_base_url_of
from providers.definition.validation import DefinitionProblem, problems_of
from providers.requests.accounts import read_lookup
from providers.requests.authorization_url import build_authorization_url
from providers.requests.callback import read_callback
from providers.responses.error_mapping import read_revocation
from providers.tools.catalogue_report import vector_problems
from tests.conformance.providers.agreement import assert_agrees, failure_or_fail, read_or_fail
from tests.conformance.providers.exchanges import (
    REDIRECT,
    SECRETS,
    Exchange,
    as_read,
    assert_further,
    assert_request,
    assert_tokens,
    by_name,
    minted,
    oauth1_read,
    raw_reply,
    read_vector,
    send,
)
from tests.fakes.providers.scripted_provider import ScriptedProvider

GUIDE = DOCS / "guide" / "adding-a-provider.md"
REGISTRY = Registry.load()


@pytest.mark.parametrize("name", REGISTRY.names())
def test_shape(name: str) -> None:
    """The fields, their types and the template parameters: the other tests skip a vector that fails here."""
    if mistakes := mistakes_of(name):
        pytest.fail("\n".join(map(str, mistakes)), pytrace=False)


@cache
def mistakes_of(name: str) -> list[DefinitionProblem]:
    return vector_problems(REGISTRY.get(name), read_vector(name), f"vectors/{name}.yaml")


@pytest.mark.parametrize("name", [*REGISTRY.names(), GUIDE.name])
async def test_exchange(name: str) -> None:
    """One test for a provider: its checks take milliseconds, and a failure names the vector's place."""
    if name == GUIDE.name:
        exchange = the_guides()
    elif mistakes_of(name):
        pytest.skip("test_shape tells the mistakes of this vector")
    else:
        exchange = Exchange(REGISTRY.get(name), read_vector(name))
    authorization_url(exchange)
    for kind in ("exchange", "post_exchange", "refresh", "revoke"):
        await request_and_reply(exchange, kind)
    await client_grants_and_oauth1(exchange)
    refusals(exchange)
    a_refusals_words_are_found_and_quote_no_secret(exchange)
    further_replies(exchange)
    callbacks(exchange)
    accounts_and_api_base_url(exchange)


def the_guides() -> Exchange:
    """What a newcomer copies from the page has to work as it stands."""
    page = GUIDE.read_text(encoding="utf-8")
    definition, vector = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (rules,) = re.findall(r"```yml\n(.*?)```", page, re.DOTALL)
    spec = parse_yaml_definition(definition, GUIDE.name)
    assert spec.__replace__(**parse_yaml(rules)).error_rules
    assert problems_of(spec, GUIDE.name) == []
    assert vector_problems(spec, parse_yaml(vector), GUIDE.name) == []
    return Exchange(spec, parse_yaml(vector))


def authorization_url(exchange: Exchange) -> None:
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
    done = {"url": address, "query": by_name(query), "fragment": fragment}
    said = {"fragment": "", **{name: expected[name] for name in done if name in expected}}
    assert_agrees(f"{exchange.file}: authorize", said, done, names=SECRETS)
    pairs = parse_qsl(query, keep_blank_values=True)
    if "order" in expected:
        assert [name for name, _ in pairs][: len(expected["order"])] == expected["order"]
    assert expected.get("raw", "") in query


async def request_and_reply(exchange: Exchange, kind: str) -> None:
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
        assert not supported[kind]
        return
    where = f"{exchange.file}: {kind}"
    async with ScriptedProvider() as server:
        path = expected["request"]["url"].removeprefix("https://").partition("?")[0].strip("/")
        server.script(raw_reply(expected["reply"]), at=path)
        reply = await send(exchange, kind, server)
        assert len(server.calls) == 1
        assert_request(server.calls[0], expected["request"], f"{where}.request")
    if kind == "revoke":
        for confirmed in (reply, *map(as_read, expected.get("gone", []))):
            read_or_fail(f"{where}.reply", partial(read_revocation, exchange.spec, confirmed))
    else:
        read = partial(exchange.read, reply, refreshing=kind != "exchange")
        assert_tokens(read_or_fail(f"{where}.reply", read), expected["tokens"], f"{where}.tokens")
    if kind == "exchange":
        assert_further(exchange.spec, reply, expected, where)


async def client_grants_and_oauth1(exchange: Exchange) -> None:
    grants = exchange.vector.get("grants", {})
    assert grants or exchange.speaks_code
    for name, expected in grants.items():
        where = f"{exchange.file}: grants.{name}"
        if name == Flow.OAUTH1:
            assert_tokens(await oauth1_read(exchange, expected), expected["tokens"], f"{where}.tokens")
            continue
        tokens = as_read(expected["reply"])
        if name in (Flow.CLIENT_CREDENTIALS, Flow.JWT_BEARER):
            tokens = await minted(exchange, Flow(name), expected)
        read = read_or_fail(f"{where}.reply", partial(exchange.read, tokens, refreshing=False))
        assert_tokens(read, expected["tokens"], f"{where}.tokens")


def refusals(exchange: Exchange) -> None:
    assert exchange.vector["refusals"]
    for place, refusal in enumerate(exchange.vector["refusals"]):
        where = f"{exchange.file}: refusals.{place}"
        failure = failure_or_fail(where, partial(exchange.refusal, refusal))
        assert_agrees(f"{where}.code", refusal["code"], failure.code.value)
        if "retry_after" in refusal:
            assert_agrees(f"{where}.retry_after", refusal["retry_after"], failure.retry_after)


def a_refusals_words_are_found_and_quote_no_secret(exchange: Exchange) -> None:
    for refusal in exchange.vector["refusals"]:
        if refusal["code"] == "refresh_pending":
            continue  # goes on: nobody reads it
        with pytest.raises(ReplyFailure) as raised:
            exchange.refusal(refusal)
        said = raised.value.said
        assert said is not None
        assert not any(secret in str(said) for secret in SECRETS.values()), said
        assert str(said) or refusal["code"] != "grant_rejected" or not refusal["reply"].get("json"), refusal


def further_replies(exchange: Exchange) -> None:
    for place, odd in enumerate(exchange.vector.get("replies", [])):
        where, reply = f"{exchange.file}: replies.{place}", as_read(odd["reply"])
        read = partial(exchange.read, reply, refreshing=odd["to"] == "refresh")
        assert_tokens(read_or_fail(f"{where}.reply", read), odd["tokens"], f"{where}.tokens")
        if odd["to"] != "refresh":
            assert_further(exchange.spec, reply, odd, where)


def callbacks(exchange: Exchange) -> None:
    for place, callback in enumerate(exchange.vector.get("callbacks", [])):
        query = [(name, str(value)) for name, value in callback["query"].items()]
        read = read_callback(
            query,
            expected_issuer=None,
            iss_required=False,
            spec=exchange.spec,
            params=exchange.integration.params,
            requested=exchange.scopes,
        )
        done = {
            "code": read.code.reveal() if read.code else None,
            "denied": read.denied,
            "metadata": read.metadata,
            "scopes": None if read.scopes is None else list(read.scopes),
        }
        said = {"code": None, "denied": False, "metadata": {}, "scopes": None, **callback}
        said.pop("query")
        assert_agrees(f"{exchange.file}: callbacks.{place}", said, done, names=SECRETS)


def accounts_and_api_base_url(exchange: Exchange) -> None:
    vector, spec = exchange.vector, exchange.spec
    facts = dict(exchange.facts)
    for lookup, replies in zip(spec.post_auth, vector.get("lookups", []), strict=True):
        for expected in replies:
            options = read_lookup(spec, lookup, as_read(expected["reply"]))
            found = [it.model_dump() for it in options]
            assert_agrees(f"{exchange.file}: lookups.options", expected["options"], found)
            facts |= options[0].metadata if options else {}
    if "api" in vector:
        done = api_base_url_of(spec, exchange.integration.params, facts)
        assert_agrees(f"{exchange.file}: api", vector["api"], done)
