"""Looks up the accounts that a grant reaches, by a request of the definition.

The access token is sent only to the definition's URL. A lookup spends no credential, so it can be
repeated.
"""

from collections.abc import Mapping
from typing import Any

import httpx2

from evergrant_server.core.connections.grant import AccountOption
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, why_unreachable
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import WHOLE_REPLY, AccountLookup
from providers.definition.templates import (
    checked_params,
    fill_template,
    params_from_metadata,
    require_complete,
)
from providers.requests.request_format import STANDARD_HEADERS
from providers.responses.error_mapping import unreadable_reply, wait_of_reply
from providers.responses.raw_reply import (
    RawReply,
    UnreadableBody,
    is_metadata_value,
    parse_body,
    value_at,
)
from providers.responses.reply_error import holds

_MAX_OPTIONS = 200
_MAX_LABEL_LENGTH = 200


async def send_lookup(
    egress: Egress,
    spec: ProviderSpec,
    lookup: AccountLookup,
    token: Secret,
    params: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> RawReply:
    """Send a lookup with the access token.

    Raises Failure PROVIDER_UNREACHABLE, EGRESS_REFUSED, REPLY_UNREADABLE, and INVALID_REQUEST for a
    missing template parameter.
    """
    values = checked_params(spec, {**params, **params_from_metadata(spec, metadata)})
    url = require_complete(spec, fill_template(lookup.url, values, spec))
    headers = STANDARD_HEADERS | spec.required_headers
    headers["Authorization"] = f"{lookup.auth_scheme} {token.reveal()}"
    try:
        async with egress.client(headers=headers) as http:
            response = await http.request(lookup.method, url)
    except httpx2.TransportError as error:
        why = f"the accounts could not be read: {why_unreachable(error)}"
        raise Failure(ErrorCode.PROVIDER_UNREACHABLE, why, provider=spec.name) from None
    return RawReply.of(response)


def read_lookup(spec: ProviderSpec, lookup: AccountLookup, reply: RawReply) -> tuple[AccountOption, ...]:
    """The accounts of a reply; exactly one, without an id, where there is no choice. Pure.

    Raises Failure PROVIDER_RATE_LIMITED, PROVIDER_ERROR, CLIENT_REJECTED (the grant lacks a scope, or
    the definition is wrong) and REPLY_UNREADABLE.
    """
    if reply.status != 200:
        raise _failure(spec, reply)
    try:
        # a top-level array is wrapped, since the parser expects an object
        body = b'{"whole":' + reply.body + b"}" if lookup.choose == WHOLE_REPLY else reply.body
        data = parse_body(body, "json")
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None
    if lookup.choose is None:
        return (AccountOption(id="", label="", metadata=_metadata(lookup, data)),)
    items = value_at(data, "whole" if lookup.choose == WHOLE_REPLY else lookup.choose)
    if not isinstance(items, list) or len(items) > _MAX_OPTIONS:
        raise unreadable_reply(spec, reply, "no list of accounts, or a too long one")
    if (where := lookup.choose_where) is not None:
        items = [item for item in items if not isinstance(item, dict) or holds(where, item)]
    read_options = [_option(lookup, item) for item in items if isinstance(item, dict)]
    options = tuple(option for option in read_options if option is not None)
    if len({option.id for option in options}) != len(items):
        raise unreadable_reply(spec, reply, "an account without an id of its own")
    return options


def _option(lookup: AccountLookup, item: dict[str, Any]) -> AccountOption | None:
    metadata = _metadata(lookup, item)
    id = metadata.get(lookup.id_field)
    if id is None or not str(id) or not str(id).isprintable():
        return None
    label = value_at(item, lookup.label) if lookup.label else None
    if not isinstance(label, str) or not label or not label.isprintable():
        label = str(id)
    return AccountOption(id=str(id), label=label[:_MAX_LABEL_LENGTH], metadata=metadata)


def _metadata(lookup: AccountLookup, data: dict[str, Any]) -> dict[str, Any]:
    values = {name: value_at(data, path) for name, path in lookup.metadata.items()}
    return {name: value for name, value in values.items() if is_metadata_value(value)}


def _failure(spec: ProviderSpec, reply: RawReply) -> Failure:
    detail = f"{spec.name} replied to the request for accounts with status {reply.status}"
    match reply.status:
        case 429:
            code = ErrorCode.PROVIDER_RATE_LIMITED
        case status if status >= 500:
            code = ErrorCode.PROVIDER_ERROR
        case _:
            code = ErrorCode.CLIENT_REJECTED
    return Failure(code, detail, retry_after=wait_of_reply(spec, reply, code), provider=spec.name)
