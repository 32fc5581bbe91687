"""Judges replies: tokens out of an answer, or a failure sorted by who repairs it. Pure.

RFC 6749 sections 5.1, 5.2 and 6; RFC 7009 section 2.2; RFC 7662 section 2.2. No content of
a reply reaches a message: only status, sizes, types and error names of a known shape.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.proof_key import DPOP_TOKEN_TYPE
from evergrant_server.core.errors import Failure
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable_text
from providers.definition.patterns import first_group
from providers.definition.schema import ProviderSpec
from providers.definition.schema_lifecycle import RevocationSpec
from providers.responses.durations import parse_duration, reply_date, seconds_until
from providers.responses.error_mapping import error_name, failure_of_reply, reply_fields, unreadable_reply
from providers.responses.json_paths import UnreadableBody, is_metadata_value, json_type, value_at
from providers.responses.raw_reply import RawReply

_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")  # VSCHAR without space: it must fit into a header
_MAX_VALUE_LENGTH = 1024


def read_tokens(
    spec: ProviderSpec,
    reply: RawReply,
    *,
    requested_scopes: Sequence[str],
    refreshing: bool,
    now: datetime | None = None,
) -> TokenSet:
    """The tokens of a reply to a code exchange or (`refreshing`) a refresh.

    `now` is used for expiry given as a date, when the reply has no Date of its own. Without a
    refresh token in it the set has None: the old one stays good (RFC 6749 section 6).
    Raises Failure GRANT_REJECTED, CLIENT_REJECTED, PROVIDER_ERROR, PROVIDER_RATE_LIMITED
    (both with retry_after in seconds when the provider gave one), REPLY_UNREADABLE: as UnreadTokens
    where the provider has made tokens.
    """
    raise_for_failure(spec, reply, spec.success_statuses, now)
    data = reply_fields(spec, reply)
    try:
        return _read_token_set(spec, reply, data, requested_scopes, refreshing, now)
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None


def read_revocation(spec: ProviderSpec, reply: RawReply) -> None:
    """Returns when the provider has confirmed that the grant is dead; raises Failure otherwise.

    200 means done even for a token it doesn't know (RFC 7009 section 2.2), and its body is
    ignored unless the definition says how errors hide in it. 503 means the token still lives.
    """
    rule = spec.revocation or RevocationSpec()
    if reply.status in rule.gone_statuses:
        return
    error = _error_or_none(spec, reply)
    if error and error in rule.gone_error_codes:
        return
    if reply.status not in rule.success_statuses:
        raise failure_of_reply(spec, reply, error)
    if error is not None and (spec.error_rules or spec.status_field):
        raise failure_of_reply(spec, reply, error)


def is_unsupported_token_type(spec: ProviderSpec, reply: RawReply) -> bool:
    """Whether the provider says that it can't revoke this kind of token (RFC 7009 section 2.2.1)."""
    return reply.status == 400 and _error_or_none(spec, reply) == "unsupported_token_type"


def read_introspection(spec: ProviderSpec, reply: RawReply) -> bool:
    """Whether the token is active: only the JSON boolean true says so (RFC 7662 section 2.2)."""
    raise_for_failure(spec, reply, (200,))
    active = reply_fields(spec, reply).get("active")
    if not isinstance(active, bool):
        raise unreadable_reply(spec, reply, f"active that is {json_type(active)}")
    return active


def raise_for_failure(
    spec: ProviderSpec, reply: RawReply, success: tuple[int, ...], now: datetime | None = None
) -> None:
    """Raise for a status that isn't success, and for an error that hides behind one that is."""
    error = _error_or_none(spec, reply)
    if reply.status not in success or error is not None:
        raise failure_of_reply(spec, reply, error, now)


def _error_or_none(spec: ProviderSpec, reply: RawReply) -> str | None:
    try:
        return error_name(spec, reply_fields(spec, reply))
    except Failure:
        return None  # an unreadable body names no error


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
    if access is None and response.alternate_access_token_path:
        access = value_at(data, response.alternate_access_token_path)
    if access is None:
        raise UnreadableBody("no access token")
    refresh_token = _checked_token(value_at(data, response.refresh_token_path), "a refresh token")
    scopes = _scopes(spec, value_at(data, response.scope_path))
    if scopes is not None and spec.offline_scope in requested and (refresh_token or refreshing):
        # granted though not listed: some providers don't echo the scope that yields a refresh token
        scopes = tuple(dict.fromkeys((*scopes, str(spec.offline_scope))))
    token = _checked_token(access, "an access token")
    if token is None:
        raise UnreadableBody("an empty access token")
    clock = reply_date(reply.headers) or now
    expires_in = _expires_in(spec, data, clock)
    refresh_expires_in = _refresh_expires_in(spec, data, clock) if refresh_token else None
    if spec.refreshes_with_access_token:  # the token is what the next one is made from
        refresh_token, refresh_expires_in = None, expires_in
    return TokenSet(
        access_token=token,
        token_type=_token_type(spec, value_at(data, response.token_type_path)),
        refresh_token=refresh_token if spec.refresh_supported else None,
        id_token=_checked_token(value_at(data, response.id_token_path), "an id token"),
        expires_in=expires_in,
        refresh_expires_in=refresh_expires_in,
        scopes=scopes,
        metadata=_metadata(spec, data),
        said_at=reply_date(reply.headers),
    )


def read_nested_tokens(
    spec: ProviderSpec, reply: RawReply, data: dict[str, Any], now: datetime | None
) -> TokenSet:
    """The tokens of a part of a reply to a code, laid out as a reply of its own. Raises Unreadable."""
    return _read_token_set(spec, reply, data, (), False, now)


def _checked_token(value: Any, what: str) -> Secret | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise UnreadableBody(f"{what} that is {json_type(value)}")
    if not _TOKEN.fullmatch(value):
        raise UnreadableBody(f"{what} with characters that no header may hold, or too long")
    return Secret(value)


def _token_type(spec: ProviderSpec, value: Any) -> str:
    """A type we don't know must not be used (RFC 6749 section 7.1), case ignored (5.1).

    Where a bound token was asked for, a bearer token is none (RFC 9449 section 5).
    """
    if spec.dpop:
        if not isinstance(value, str) or value.lower() != DPOP_TOKEN_TYPE.lower():
            raise UnreadableBody("a token that isn't bound to our key, as was asked for")
        return DPOP_TOKEN_TYPE
    if value is None or value == "":
        return "Bearer"
    if not isinstance(value, str):
        raise UnreadableBody(f"a token type that is {json_type(value)}")
    if value.lower() not in {name.lower() for name in spec.response.bearer_token_types}:
        raise UnreadableBody("a token type that is not known")
    return "Bearer"


def _expires_in(spec: ProviderSpec, data: dict[str, Any], now: datetime | None) -> float | None:
    response = spec.response
    if response.expires_at_path:
        moment = value_at(data, response.expires_at_path)
        if moment is not None:
            return seconds_until(moment, "an expiry", response.expires_at_format, now)
    value = value_at(data, response.expires_in_path) if response.expires_in_path else None
    if value is None:
        return spec.assumed_lifetime_s
    zero = response.zero_means_no_expiry
    return parse_duration(value, "expires_in", unit=response.expires_in_unit, zero_is_never=zero)


def _refresh_expires_in(spec: ProviderSpec, data: dict[str, Any], now: datetime | None) -> float | None:
    response = spec.response
    if response.refresh_expires_at_path:
        moment = value_at(data, response.refresh_expires_at_path)
        return seconds_until(moment, "a refresh token's expiry", response.refresh_expires_at_format, now)
    value = value_at(data, response.refresh_expires_in_path) if response.refresh_expires_in_path else None
    if value is None:
        return spec.refresh_token_lifetime_s
    # zero is how some servers say that a refresh token has no end of its own
    return parse_duration(
        value, "a refresh token's lifetime", unit=response.expires_in_unit, zero_is_never=True
    )


def _scopes(spec: ProviderSpec, value: Any) -> tuple[str, ...] | None:
    """None when the reply has no scope: as requested, then (RFC 6749 section 5.1). What can't be
    written is no scope, and no reason to lose the tokens."""
    if value is None:
        return None
    if spec.response.scope_format == "array":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UnreadableBody(f"a scope that is {json_type(value)}, not an array of strings")
        parts = value
    else:
        if not isinstance(value, str):
            raise UnreadableBody(f"a scope that is {json_type(value)}, not a string")
        # no scope holds white space (RFC 6749 section 3.3), so it separates whatever else does
        parts = value.replace(spec.response.scope_separator or spec.scope_separator, " ").split()
    return tuple(dict.fromkeys(part for part in parts if part and is_storable_text(part)))


def _metadata(spec: ProviderSpec, data: dict[str, Any]) -> dict[str, Any]:
    """Facts beside the tokens: short scalars at declared paths, keyed by path."""
    facts = {path: value_at(data, path) for path in spec.response.metadata_paths}
    for name, rule in spec.response.metadata_patterns.items():
        facts[name] = first_group(rule.pattern, str(value_at(data, rule.path) or "")[:_MAX_VALUE_LENGTH])
    return {name: value for name, value in facts.items() if is_metadata_value(value)}
