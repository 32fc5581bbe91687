"""Reads the callback of an authorization request (RFC 6749 section 4.1.2, RFC 9207). Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from evergrant_server.core.connections.imported_tokens import ImportedTokens
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.requests.callback_metadata import callback_metadata, callback_scopes
from providers.requests.callback_parameters import VISIBLE, Query, checked_query, error_param, reject_callback


@dataclass(frozen=True)
class Callback:
    """A well-formed callback: a code, tokens, or an error."""

    code: Secret | None
    state: Secret | None
    denied: bool
    error: str | None  # a code such as access_denied, never the description
    metadata: dict[str, str] = field(default_factory=dict)  # checked; by declared name
    scopes: tuple[str, ...] | None = None  # granted, where the callback has them
    tokens: ImportedTokens | None = None  # in the implicit flow


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
    error = error_param(given, spec.callback_error_params)
    code = given.get(spec.callback_code_param)
    if error is not None:
        if code:
            reject_callback("a code and an error at once")
        return Callback(None, state, denied=error in spec.callback_denials, error=error)
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
