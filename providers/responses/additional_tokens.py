"""Reads the tokens of further slots in a reply to a code exchange. Pure."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from evergrant_server.core.connections.grant import TokenSet
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import AdditionalTokens
from providers.json_type import json_type
from providers.responses.error_mapping import reply_fields, unreadable_reply
from providers.responses.json_paths import UnreadableBody, value_at
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_nested_tokens

_MAX_TOKEN_SETS = 50
_NAME = re.compile(r"[\x21-\x7e]{1,80}")  # becomes a connection's label


def additional_token_sets(
    spec: ProviderSpec, reply: RawReply, *, now: datetime | None = None
) -> dict[str, TokenSet]:
    """The tokens of each slot but `main`, in a reply that `read_tokens` has accepted.

    Raises Failure REPLY_UNREADABLE when any of them is unreadable, since those that weren't kept would
    be lost.
    """
    rule = spec.response.additional_tokens
    if rule is None:
        return {}
    slots: dict[str, TokenSet] = {}
    try:
        for name, data in _token_objects(spec, rule, value_at(reply_fields(spec, reply), rule.path)):
            if name in slots:
                raise UnreadableBody("two token slots of one name")
            slots[name] = read_nested_tokens(spec, reply, data, now)
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None
    return slots


def _token_objects(
    spec: ProviderSpec, rule: AdditionalTokens, value: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    if value is None:
        return
    items = [value] if rule.name else value
    if not isinstance(items, list) or len(items) > _MAX_TOKEN_SETS:
        raise UnreadableBody(f"further tokens that are {json_type(value)}, or too many")
    for item in items:
        if not isinstance(item, dict):
            raise UnreadableBody(f"further tokens that are {json_type(item)}")
        if value_at(item, spec.response.access_token_path) is None:
            continue  # an account without a token
        name = rule.name or item.get(str(rule.key))
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UnreadableBody("further tokens without a name")
        yield name, item
