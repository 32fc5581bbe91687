"""Asks a provider which accounts a grant reaches: one declared request, judged by declared paths.

The access token goes to the URL of the definition and nowhere else. Nothing is spent: what fails
is asked again. Facts are short scalars; a body that is something else is REPLY_UNREADABLE.
"""

from collections.abc import Mapping
from typing import Any

import httpx2

from evergrant_server.core.connections.account import AccountOption
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import WHOLE_REPLY, AccountLookup
from providers.definition.templates import (
    checked_params,
    fill_template,
    params_from_metadata,
    require_complete,
)
from providers.responses.durations import retry_after
from providers.responses.error_mapping import unreadable_reply
from providers.responses.json_paths import UnreadableBody, is_metadata_value, parse_body, value_at
from providers.responses.raw_reply import RawReply

_MAX_OPTIONS = 200
_MAX_LABEL_LENGTH = 200


async def send_lookup(
    egress: Egress,
    spec: ProviderSpec,
    lookup: AccountLookup,
    token: Secret,
    params: Mapping[str, str],
    facts: Mapping[str, Any],
) -> RawReply:
    """Send one lookup with the access token. Raises Failure PROVIDER_UNREACHABLE, EGRESS_REFUSED,
    REPLY_UNREADABLE, INVALID_REQUEST for a parameter that is missing."""
    values = checked_params(spec, {**params, **params_from_metadata(spec, facts)})
    url = require_complete(spec, fill_template(lookup.url, values, spec))
    headers = {"Accept": "application/json", "User-Agent": "Evergrant", **spec.required_headers}
    headers["Authorization"] = f"{lookup.auth_scheme} {token.reveal()}"
    try:
        async with egress.client(headers=headers) as http:
            answer = await http.request(lookup.method, url)
    except httpx2.TransportError as error:
        why = f"{spec.name} could not be asked which accounts there are ({type(error).__name__})"
        raise Failure(ErrorCode.PROVIDER_UNREACHABLE, why, provider=spec.name) from None
    return RawReply(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content)


def read_lookup(spec: ProviderSpec, lookup: AccountLookup, reply: RawReply) -> tuple[AccountOption, ...]:
    """The accounts that a reply names; exactly one, without an id, where there is nothing to choose. Pure.

    Raises Failure PROVIDER_RATE_LIMITED, PROVIDER_ERROR, CLIENT_REJECTED (the grant may not ask
    that: a scope is missing, or the definition is wrong) and REPLY_UNREADABLE.
    """
    if reply.status != 200:
        raise _failure(spec, reply)
    try:
        # an array at the top is wrapped, so that one strict reader reads both
        body = b'{"whole":' + reply.body + b"}" if lookup.choose == WHOLE_REPLY else reply.body
        data = parse_body(body, "json")
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None
    if lookup.choose is None:
        return (AccountOption(id="", label="", metadata=_metadata(lookup, data)),)
    items = value_at(data, "whole" if lookup.choose == WHOLE_REPLY else lookup.choose)
    if not isinstance(items, list) or len(items) > _MAX_OPTIONS:
        raise unreadable_reply(spec, reply, "no list of accounts, or too long a one")
    options = [_option(lookup, item) for item in items if isinstance(item, dict)]
    if None in options or len({it.id for it in options if it}) != len(items):
        raise unreadable_reply(spec, reply, "an account without an id of its own")
    return tuple(it for it in options if it is not None)


def _option(lookup: AccountLookup, item: dict[str, Any]) -> AccountOption | None:
    facts = _metadata(lookup, item)
    known_by = facts.get(lookup.id_field)
    if known_by is None or not str(known_by) or not str(known_by).isprintable():
        return None
    named = value_at(item, lookup.label) if lookup.label else None
    label = named if isinstance(named, str) and named.isprintable() and named else str(known_by)
    return AccountOption(id=str(known_by), label=label[:_MAX_LABEL_LENGTH], metadata=facts)


def _metadata(lookup: AccountLookup, data: dict[str, Any]) -> dict[str, Any]:
    found = {name: value_at(data, path) for name, path in lookup.metadata.items()}
    return {name: value for name, value in found.items() if is_metadata_value(value)}


def _failure(spec: ProviderSpec, reply: RawReply) -> Failure:
    detail = f"{spec.name} answered the question which accounts there are with status {reply.status}"
    wait = retry_after(reply.headers)
    match reply.status:
        case 429:
            return Failure(ErrorCode.PROVIDER_RATE_LIMITED, detail, retry_after=wait, provider=spec.name)
        case status if status >= 500:
            return Failure(ErrorCode.PROVIDER_ERROR, detail, retry_after=wait, provider=spec.name)
        case _:
            return Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name)
