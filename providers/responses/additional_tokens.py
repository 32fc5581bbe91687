"""Further chains of tokens in a reply to a code: each is refreshed, leased and revoked on its own. Pure."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from evergrant_server.core.connections.grant import TokenSet
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import AdditionalTokens
from providers.responses.error_mapping import reply_fields, unreadable_reply
from providers.responses.json_paths import UnreadableBody, json_type, value_at
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_nested_tokens

_MAX_TOKEN_SETS = 50
_NAME = re.compile(r"[\x21-\x7e]{1,80}")  # it becomes a label


def additional_token_sets(
    spec: ProviderSpec, reply: RawReply, *, now: datetime | None = None
) -> dict[str, TokenSet]:
    """The chains beside the main one, by name. What has no access token brings none.

    For a reply that `read_tokens` has read. Raises Failure REPLY_UNREADABLE: to keep some of the
    chains would lose the others for good.
    """
    rule = spec.response.additional_tokens
    if rule is None:
        return {}
    chains: dict[str, TokenSet] = {}
    try:
        for name, data in _token_objects(spec, rule, value_at(reply_fields(spec, reply), rule.path)):
            if name in chains:
                raise UnreadableBody("two chains of one name")
            chains[name] = read_nested_tokens(spec, reply, data, now)
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None
    return chains


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
            continue  # who consented, and no token
        name = rule.name or item.get(str(rule.key))
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UnreadableBody("further tokens without a name")
        yield name, item
