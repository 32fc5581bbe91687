"""A trial's vector reads as the reply did: redaction takes nothing that the reader of any provider reads."""

import pytest

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import Failure
from providers.definition.registry import Registry
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import additional_token_sets
from providers.tools.trial.redaction import Redactor
from providers.tools.trial.token_requests import SeenReply
from providers.tools.trial.vector_replies import written_reply, written_tokens
from tests.conformance.providers.exchanges import (
    SECRETS,
    Exchange,
    as_read,
    assert_tokens,
    known,
    read_vector,
)
from tests.unit.providers.samples import NOW

REGISTRY = Registry.load()
SENT = {SECRETS[name]: name for name in ("<refresh token>", "<access token>")}


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_reply_of_the_catalogue_survives(name: str) -> None:
    exchange = Exchange(REGISTRY.get(name), read_vector(name))
    redactor = Redactor()
    for kind in ("exchange", "post_exchange", "refresh"):
        if kind not in exchange.vector:
            continue
        reply = as_read(exchange.vector[kind]["reply"])
        tokens = read(exchange, kind, reply)
        for each in (tokens, *tokens.further.values()):
            redactor.learn(each.access_token, each.refresh_token)
        seen = SeenReply(kind, reply, {} if kind == "exchange" else SENT, tokens=tokens)
        written = written_reply(exchange.spec, redactor, seen)
        expected = written_tokens(exchange.spec, seen, written)
        again = read(exchange, kind, as_read(known(written)))
        assert_tokens(again, known(expected["tokens"]))
        assert again.further.keys() == known(expected.get("further", {})).keys()
        assert again.metadata.keys() == tokens.metadata.keys() or exchange.spec.response.metadata_patterns
    for refusal in exchange.vector["refusals"]:
        reply = as_read(refusal["reply"])
        written = written_reply(exchange.spec, redactor, SeenReply("revoked", reply))
        assert code_of(exchange, as_read(known(written))) == code_of(exchange, reply), written


def read(exchange: Exchange, kind: str, reply: RawReply) -> TokenSet:
    tokens = exchange.read(reply, refreshing=kind == "refresh")
    further = additional_token_sets(exchange.spec, reply, now=NOW) if kind == "exchange" else {}
    return tokens.model_copy(update={"further": further})


def code_of(exchange: Exchange, reply: RawReply) -> str:
    with pytest.raises(Failure) as raised:
        exchange.read(reply, refreshing=True)
    return raised.value.code.value
