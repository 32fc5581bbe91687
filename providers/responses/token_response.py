"""Reads the tokens of a reply (RFC 6749 sections 5.1 and 6), those of further slots too. Pure.

Messages hold a reply's status, sizes, types and well-formed error names only.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.connections.grant import UNKNOWN_SCOPE, TokenSet
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable_text, json_type
from providers.definition.patterns import first_group
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import RequestKind
from providers.definition.schema_response import AdditionalTokens
from providers.quirks import reshaped_first_reply
from providers.responses.error_mapping import (
    raise_for_failure,
    reply_fields,
    unreadable_reply,
)
from providers.responses.raw_reply import (
    MAX_VALUE_LENGTH,
    RawReply,
    UnreadableBody,
    is_metadata_value,
    parse_duration,
    reply_date,
    seconds_until,
    value_at,
)

_MAX_NUMERIC_SCOPE = 10**18
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")  # VSCHAR without space, which a header can hold


def read_tokens(
    spec: ProviderSpec,
    reply: RawReply,
    *,
    requested_scopes: Sequence[str],
    refreshing: bool,
    now: datetime | None = None,
    at: RequestKind | None = None,
) -> TokenSet:
    """The tokens of a reply to a code exchange or (`refreshing`) a refresh; `at` names another request.

    `now` converts expiry dates when the reply has no Date header. A set without a refresh token means
    that the old one stays valid (RFC 6749 section 6). Raises Failure GRANT_REJECTED, CLIENT_REJECTED,
    PROVIDER_ERROR and PROVIDER_RATE_LIMITED (with retry_after in seconds where given), and
    REPLY_UNREADABLE, as UnreadableTokens where the reply appears to contain tokens.
    """
    reply = reply if refreshing else _reshaped(spec, reply)
    raise_for_failure(
        spec, reply, spec.success_statuses, now, at or ("refresh" if refreshing else "exchange")
    )
    data = _unwrapped(spec, reply_fields(spec, reply))
    try:
        return _read_token_set(spec, reply, data, requested_scopes, refreshing, now)
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None


def _reshaped(spec: ProviderSpec, reply: RawReply) -> RawReply:
    """The reply as the definition's quirks have it. They run here and not before: a reply that one of them
    fails at is in the journal by then."""
    return reply.with_body(reshaped_first_reply(spec.quirks, reply.body))


def _unwrapped(spec: ProviderSpec, data: dict[str, Any]) -> dict[str, Any]:
    """The object that holds the tokens, in a reply of either shape."""
    inner = value_at(data, spec.response.unwrap_path)
    return inner if isinstance(inner, dict) else data


def _read_token_set(
    spec: ProviderSpec,
    reply: RawReply,
    data: dict[str, Any],
    requested: Sequence[str],
    refreshing: bool,
    now: datetime | None,
) -> TokenSet:
    response = spec.response
    access = value_at(data, response.access_token_path)
    if access is None:
        raise UnreadableBody("no access token")
    refresh_token = _checked_token(value_at(data, response.refresh_token_path), "a refresh token")
    scopes = _scopes(spec, value_at(data, response.subject_scope_path))
    scopes = _scopes(spec, value_at(data, response.scope_path)) if scopes is None else scopes
    if scopes == () and spec.scopes_supported:  # no scope is what the grammar of RFC 6749 section 3.3 lacks
        scopes = (UNKNOWN_SCOPE,)
    if scopes is not None and spec.offline_scope in requested and (refresh_token or refreshing):
        # some providers don't list the granted offline scope
        scopes = tuple(dict.fromkeys((*scopes, str(spec.offline_scope))))
    token = _checked_token(access, "an access token")
    if token is None:
        raise UnreadableBody("an empty access token")
    reply_time = reply_date(reply.headers) or now
    expires_in = _expires_in(spec, data, reply_time)
    refresh_expires_in = _refresh_expires_in(spec, data, reply_time) if refresh_token else None
    if spec.refreshes_with_access_token:  # the access token is exchanged for the next one
        refresh_token, refresh_expires_in = None, expires_in
    return TokenSet(
        access_token=token,
        token_type=_token_type(spec, data.get("token_type")),
        refresh_token=refresh_token if spec.refresh_supported else None,
        id_token=_checked_token(data.get("id_token"), "an id token"),
        expires_in=expires_in,
        refresh_expires_in=refresh_expires_in,
        scopes=scopes,
        metadata=_metadata(spec, data),
        server_time=reply_date(reply.headers),
    )


def _checked_token(value: Any, noun: str) -> Secret | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise UnreadableBody(f"{noun} that is {json_type(value)}")
    if not _TOKEN.fullmatch(value):
        raise UnreadableBody(f"{noun} with characters that a header can't hold, or too long")
    return Secret(value)


def _token_type(spec: ProviderSpec, value: Any) -> str:
    """The token type, whose case is ignored (RFC 6749 section 5.1). An unknown one is refused (7.1).

    A bearer token is refused where a bound token was requested (RFC 9449 section 5).
    """
    if spec.dpop:
        if not isinstance(value, str) or value.lower() != DPOP_TOKEN_TYPE.lower():
            raise UnreadableBody("a token that isn't bound to the requested key")
        return DPOP_TOKEN_TYPE
    if value is None or value == "":
        return "Bearer"
    if not isinstance(value, str):
        raise UnreadableBody(f"a token type that is {json_type(value)}")
    if value.lower() not in {name.lower() for name in spec.response.bearer_token_types}:
        raise UnreadableBody("an unknown token type")
    return "Bearer"


def _expires_in(spec: ProviderSpec, data: dict[str, Any], now: datetime | None) -> float | None:
    response = spec.response
    if response.expires_at_path:
        moment = value_at(data, response.expires_at_path)
        if moment is not None:
            return seconds_until(moment, "an expiry", response.expires_at_format, now)
    value = value_at(data, response.expires_in_path) if response.expires_in_path else None
    stated = parse_duration(value, "expires_in", unit=response.expires_in_unit)
    if stated is None and (value is None or not response.zero_means_no_expiry):
        return spec.assumed_lifetime_s
    return stated


def _refresh_expires_in(spec: ProviderSpec, data: dict[str, Any], now: datetime | None) -> float | None:
    response = spec.response
    if response.refresh_expires_at_path:
        moment = value_at(data, response.refresh_expires_at_path)
        return seconds_until(moment, "a refresh token's expiry", response.refresh_expires_at_format, now)
    value = value_at(data, response.refresh_expires_in_path) if response.refresh_expires_in_path else None
    if value is None:
        return spec.refresh_token_lifetime_s
    # zero is sent for a refresh token without expiry
    return parse_duration(value, "a refresh token's lifetime", unit=response.expires_in_unit)


def _scopes(spec: ProviderSpec, value: Any) -> tuple[str, ...] | None:
    """The scopes, or None for a reply without them, which means as requested (RFC 6749 section 5.1).

    They are a string or an array, whichever is documented, and may be numbers. An invalid
    scope is left out, and another type counts as none, so that the tokens aren't lost with them.
    """
    if _is_number(value):
        value = str(value)
    if isinstance(value, list):
        parts = [str(item) for item in value if isinstance(item, str) or _is_number(item)]
    elif isinstance(value, str):
        # white space always separates, since no scope holds it (RFC 6749 section 3.3)
        parts = value.replace(spec.response.scope_separator or spec.scope_separator, " ").split()
    else:
        return None
    return tuple(dict.fromkeys(part for part in parts if part and is_storable_text(part)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_NUMERIC_SCOPE


def _metadata(spec: ProviderSpec, data: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a reply: short scalars, keyed by declared path or pattern name."""
    metadata = {path: value_at(data, path) for path in spec.response.metadata_paths}
    for name, rule in spec.response.metadata_patterns.items():
        metadata[name] = first_group(rule.pattern, str(value_at(data, rule.path) or "")[:MAX_VALUE_LENGTH])
    return {name: value for name, value in metadata.items() if is_metadata_value(value)}


_MAX_TOKEN_SETS = 50
_NAME = re.compile(r"[\x21-\x7e]{1,80}")  # becomes a connection's label


def additional_token_sets(
    spec: ProviderSpec, reply: RawReply, *, now: datetime | None = None
) -> dict[str, TokenSet]:
    """The tokens of each slot but `main`, in a reply that `read_tokens` has accepted.

    Raises Failure REPLY_UNREADABLE when any of them is unreadable, since those that weren't kept would
    be lost.
    """
    rule, reply = spec.response.additional_tokens, _reshaped(spec, reply)
    if rule is None:
        return {}
    slots: dict[str, TokenSet] = {}
    try:
        for name, data in _token_objects(spec, rule, value_at(reply_fields(spec, reply), rule.path)):
            if name in slots:
                raise UnreadableBody("two token slots of one name")
            slots[name] = _read_token_set(spec, reply, data, (), False, now)
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
