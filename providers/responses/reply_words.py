"""Finds what a provider says about an error: the name, and a sentence near it. Pure."""

import html
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from evergrant_server.core.provider_words import MOST_OF_A_WHOLE_REPLY, ProviderWords
from providers.definition.schema import ProviderSpec
from providers.responses.raw_reply import MAX_VALUE_LENGTH, RawReply, UnreadableBody, parse_body, value_at
from providers.responses.sent_values import received_tokens, sent_values

# RFC 6749 section 5.2 first, RFC 9457 section 3.1.4, then the names that providers invented
_DESCRIPTIONS = (
    "error_description",
    "error_message",
    "errorMessage",
    "message",
    "detail",
    "description",
    "reason",
    "msg",
    "errmsg",
    "error_detail",
    "hint",
    "error_name",
    "err",
    "oauth_problem_advice",
)
_OBJECTS = ("", "error", "errors.0", "data")
_MARKUP = re.compile(r"(?is)<(script|style)\b[^<>]*>.*?</\1\s*>|<!--.*?-->|<[^<>]*>")
_MOST_SHOWN = 10_000  # bytes of an unreadable body
_MOST_TOKENS = 100  # in a reply: more are nothing that could be searched for in time


def words_of_reply(spec: ProviderSpec, reply: RawReply, error: str | None) -> ProviderWords:
    """What the reply says, without the secrets that were sent and came; all of it where no field is known.

    A journal doesn't keep what was sent: of a reply that it returns only the name of the error is left.
    """
    try:
        data = parse_body(reply.body, prefix=spec.response.strip_body_prefix)
    except UnreadableBody:
        return words_of_unreadable(reply)
    named = [path for rule in spec.error_rules for path in (rule.code_path, rule.path) if path]
    words = words_of_fields(reply, data, error, tuple(path.rpartition(".")[0] for path in named))
    return words if words.error or words.description else words_of_unreadable(reply)


def description_of(spec: ProviderSpec, reply: RawReply, error: str | None) -> str:
    """The sentence beside an error as it came, for a reader that doesn't show it; "" for none."""
    try:
        data = parse_body(reply.body, prefix=spec.response.strip_body_prefix)
    except UnreadableBody:
        return ""
    return next((text for text in _texts(data, _OBJECTS) if text != error), "")[:MAX_VALUE_LENGTH].strip()


def words_of_unreadable(reply: RawReply) -> ProviderWords:
    """The text of a body in no known format, or without a known field; of markup what a browser would show.

    The status alone where the body may hold tokens, or where nothing tells which secrets it may quote.
    """
    body = reply.body[:_MOST_SHOWN]
    if reply.request is None or (reply.status < 300 and b"token" in body.lower()):
        return ProviderWords(status=reply.status)
    text = body.decode("utf-8-sig", "replace")
    if text.lstrip().startswith("<"):
        text = html.unescape(_MARKUP.sub(" ", text))
    secrets = sent_values(reply.request)
    return ProviderWords.cleaned(None, text, secrets, status=reply.status, most=MOST_OF_A_WHOLE_REPLY)


def words_of_fields(
    reply: RawReply, data: dict[str, Any], error: str | None, objects: tuple[str, ...] = ()
) -> ProviderWords:
    """As `words_of_reply`. `objects` are the paths of those to look into first."""
    texts = _texts(data, (*objects, *_OBJECTS))
    description = next((text for text in texts if text != error), None)
    secrets = set(islice(received_tokens(data), _MOST_TOKENS))
    if reply.request is None or len(secrets) == _MOST_TOKENS:
        error, description = None if error and " " in error else error, None
    else:
        secrets |= sent_values(reply.request)
    return ProviderWords.cleaned(error, description, secrets, status=reply.status)


def _texts(data: dict[str, Any], objects: tuple[str, ...]) -> Iterator[str]:
    """The sentences of these objects, then an `error` that is a sentence."""
    for where in dict.fromkeys(objects):
        for name in _DESCRIPTIONS:
            value = value_at(data, f"{where}.{name}" if where else name)
            if isinstance(value, str) and value.strip():
                yield value
    for where in ("error", "data.error"):
        value = value_at(data, where)
        if isinstance(value, str) and value.strip():
            yield value
