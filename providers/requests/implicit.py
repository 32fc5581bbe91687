"""Judges what a browser brought itself: an access token in a fragment (RFC 6749 section 4.2.2). Pure.

A token in a query was in a URL that servers log, so it is refused and never kept.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from evergrant_server.core.connections.id_token import require_nonce
from evergrant_server.core.connections.imported_tokens import ImportedTokens
from providers.definition.schema import ProviderSpec
from providers.requests.callback import (
    Callback,
    Query,
    check_issuer,
    error_param,
    reject_callback,
    state_in,
    unique_params,
)
from providers.requests.callback_metadata import callback_metadata
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

ACCESS_TOKEN_PARAM = "access_token"


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
    """Read a fragment for an attempt that was sent to `expected_issuer`.

    Raises Failure CALLBACK_INVALID as `judge_callback` does, REPLY_UNREADABLE as `read_tokens`, and
    ID_TOKEN_REFUSED for an id token of another request, though none is kept.
    """
    given = unique_params(fragment)
    state = state_in(fragment)
    check_issuer(given.get("iss"), expected_issuer, iss_required)
    error = error_param(given, spec.callback_error_params)
    if error is not None:
        if given.get(ACCESS_TOKEN_PARAM):
            reject_callback("a token and an error at once")
        return Callback(None, state, denied=error in spec.callback_denials, error=error)
    if not given.get(ACCESS_TOKEN_PARAM):
        reject_callback("access_token is missing")
    if not given.get("token_type"):
        reject_callback(
            "token_type is missing"
        )  # required, and a type we don't know must not be used (section 7.1)
    tokens, scopes = _read_tokens(spec, given, requested, nonce_hash, now)
    facts = callback_metadata(spec, given, params)
    tokens = tokens.model_copy(update={"metadata": tokens.metadata | facts})
    return Callback(None, state, False, None, facts, scopes, tokens)


def read_implicit_query(
    query: Query, *, expected_issuer: str | None, iss_required: bool, spec: ProviderSpec
) -> Callback:
    """A query of this flow holds an error or nothing. Raises Failure CALLBACK_INVALID."""
    given = unique_params(query)
    state = state_in(query)
    check_issuer(given.get("iss"), expected_issuer, iss_required)
    if ACCESS_TOKEN_PARAM in given:
        reject_callback("a token came in the query, where servers log it")
    error = error_param(given, spec.callback_error_params)
    if error is None:
        reject_callback("no token was in its fragment")
    return Callback(None, state, denied=error in spec.callback_denials, error=error)


def _read_tokens(
    spec: ProviderSpec,
    given: Mapping[str, str],
    requested: Sequence[str],
    nonce_hash: str | None,
    now: datetime,
) -> tuple[ImportedTokens, tuple[str, ...] | None]:
    """By the reader of token replies. A refresh token is not taken: none may come this way."""
    said = {name: value for name, value in given.items() if name not in ("state", "iss", "refresh_token")}
    reply = RawReply(spec.success_statuses[0], {}, json.dumps(said).encode())
    read = read_tokens(spec, reply, requested_scopes=requested, refreshing=False, now=now)
    require_nonce(read.id_token, nonce_hash)
    ends = None if read.expires_in is None else now + timedelta(seconds=read.expires_in)
    tokens = ImportedTokens(
        access_token=read.access_token,
        token_type=read.token_type,
        expires_at=ends,
        issued_at=now,
        scopes=read.scopes,
        metadata=read.metadata,
    )
    return tokens, read.scopes
