"""Reads a callback: its query (RFC 6749 section 4.1.2), or the implicit flow's fragment (4.2.2). Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import unquote

from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.connections.id_token import require_nonce
from evergrant_server.core.provider_words import ProviderWords
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.requests.callback_parameters import (
    VISIBLE,
    Query,
    callback_metadata,
    callback_scopes,
    callback_words,
    checked_query,
    error_param,
    reject_callback,
)
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

ACCESS_TOKEN_PARAM = "access_token"
ACCESS_DENIED = "access_denied"


@dataclass(frozen=True)
class Callback:
    """A well-formed callback: a code, tokens, or an error."""

    code: Secret | None
    state: Secret | None
    denied: bool
    error: str | None  # a code such as access_denied, never the description, which is in `said`
    metadata: dict[str, str] = field(default_factory=dict)  # checked; by declared name
    scopes: tuple[str, ...] | None = None  # granted, where the callback has them
    tokens: ImportedTokens | None = None  # in the implicit flow
    said: ProviderWords | None = field(default=None, repr=False)  # about the error, for admins


def read_callback(
    query: Query,
    *,
    expected_issuer: str | None,
    iss_required: bool,
    spec: ProviderSpec,
    params: Mapping[str, str],
    requested: Sequence[str],
) -> Callback:
    """Read the callback of an authorization request that was sent to `expected_issuer`.

    `params` are the integration's template parameters, `requested` the requested scopes. Raises
    Failure CALLBACK_INVALID for a repeated (RFC 6749 section 3.1) or too long parameter, a missing
    or wrong `iss` (RFC 9207 section 2.4, on error responses too), neither code nor error, or both.
    """
    given, state = checked_query(query, expected_issuer, iss_required)
    error = _read_error(spec, given, state, spec.callback_code_param)
    if error is not None:
        return error
    code = given.get(spec.callback_code_param)
    if not code:
        if spec.callback_missing_code_is_denial:
            return Callback(None, state, denied=True, error=None)
        reject_callback(f"{spec.callback_code_param} is missing")
    if spec.decode_code:
        code = unquote(code)
    if not VISIBLE.fullmatch(code):
        reject_callback(f"{spec.callback_code_param} is malformed")
    metadata = callback_metadata(spec, given, params)
    return Callback(Secret(code), state, False, None, metadata, callback_scopes(spec, given, requested))


def read_fragment(
    fragment: Query,
    *,
    expected_issuer: str | None,
    iss_required: bool,
    spec: ProviderSpec,
    params: Mapping[str, str],
    requested: Sequence[str],
    nonce_hash: str | None,
    now: datetime,
) -> Callback:
    """Read the fragment of an implicit response (RFC 6749 section 4.2.2).

    Raises Failure CALLBACK_INVALID as `read_callback`, REPLY_UNREADABLE as `read_tokens`, and
    ID_TOKEN_REFUSED for an id token of another request.
    """
    given, state = checked_query(fragment, expected_issuer, iss_required)
    error = _read_error(spec, given, state, ACCESS_TOKEN_PARAM)
    if error is not None:
        return error
    if not given.get(ACCESS_TOKEN_PARAM):
        reject_callback("access_token is missing")
    if not given.get("token_type"):
        reject_callback("token_type is missing")  # required (sections 4.2.2 and 7.1)
    # a refresh token, which may not be sent this way, is ignored
    fields = {name: value for name, value in given.items() if name not in ("state", "iss", "refresh_token")}
    reply = RawReply(spec.success_statuses[0], {}, json.dumps(fields).encode())
    read = read_tokens(spec, reply, requested_scopes=requested, refreshing=False, now=now)
    require_nonce(read.id_token, nonce_hash)
    metadata = callback_metadata(spec, given, params)
    tokens = ImportedTokens.from_token_set(read, now).__replace__(
        issued_at=now, refresh_expires_at=None, metadata=read.metadata | metadata
    )
    return Callback(None, state, False, None, metadata, read.scopes, tokens)


def read_implicit_query(
    query: Query, *, expected_issuer: str | None, iss_required: bool, spec: ProviderSpec
) -> Callback:
    """Read the query of an implicit response: an error. Raises Failure CALLBACK_INVALID.

    A token in a query is refused, since servers log URLs.
    """
    given, state = checked_query(query, expected_issuer, iss_required)
    if ACCESS_TOKEN_PARAM in given:
        reject_callback("a token is in the query, which servers log")
    error = _read_error(spec, given, state, ACCESS_TOKEN_PARAM)
    if error is None:
        reject_callback("its fragment holds no token")
    return error


def _read_error(spec: ProviderSpec, params: Mapping[str, str], state: Secret, other: str) -> Callback | None:
    """The error of a callback, if it has one. Raises Failure CALLBACK_INVALID when it has `other` as well."""
    error = error_param(params, spec.callback_error_params)
    if error is not None and params.get(other):
        reject_callback(f"{other} and an error at once")
    if error is None:
        return None
    words = callback_words(tuple(params.items()), spec.callback_error_params)
    return Callback(None, state, denied=error == ACCESS_DENIED, error=error, said=words)
