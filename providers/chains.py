"""Further chains of tokens in a reply to a code: each is refreshed, leased and revoked on its own. Pure."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from evergrant_server.core.grant import TokenSet
from providers.reading import Unreadable, at, kind
from providers.replies import tokens_in
from providers.reply import RawReply
from providers.spec import ProviderSpec
from providers.spec_response import AdditionalTokens
from providers.verdicts import body_of, unreadable

_MOST = 50
_NAME = re.compile(r"[\x21-\x7e]{1,80}")  # it becomes a label


def further_chains(
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
        for name, data in _found(spec, rule, at(body_of(spec, reply), rule.path)):
            if name in chains:
                raise Unreadable("two chains of one name")
            chains[name] = tokens_in(spec, reply, data, now)
    except Unreadable as why:
        raise unreadable(spec, reply, str(why)) from None
    return chains


def _found(spec: ProviderSpec, rule: AdditionalTokens, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if value is None:
        return
    items = [value] if rule.name else value
    if not isinstance(items, list) or len(items) > _MOST:
        raise Unreadable(f"further tokens that are {kind(value)}, or too many")
    for item in items:
        if not isinstance(item, dict):
            raise Unreadable(f"further tokens that are {kind(item)}")
        if at(item, spec.response.access_token_path) is None:
            continue  # who consented, and no token
        name = rule.name or item.get(str(rule.key))
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Unreadable("further tokens without a name")
        yield name, item
