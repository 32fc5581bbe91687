"""Judges what came back with the subject's browser (RFC 6749 section 4.1.2, RFC 9207). Pure.

Nothing here trusts the query: it was written by whoever sent the browser.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import unquote

from evergrant_server.core.connections.imported_tokens import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.requests.callback_metadata import callback_metadata, callback_scopes

Query = Sequence[tuple[str, str]]

_MAX_PARAMS = 50
_MAX_LENGTHS = {"state": 512, "iss": 2048}
_MAX_VALUE_LENGTH = 8192
_ERROR = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_VISIBLE = re.compile(r"[\x20-\x7e]+")  # VSCHAR (RFC 6749 appendix A.5, A.11)


@dataclass(frozen=True)
class Callback:
    """A well-formed callback: a code, or the tokens, or the provider's reason for having neither."""

    code: Secret | None
    state: Secret | None
    denied: bool
    error: str | None  # a name such as access_denied; never the free text beside it
    metadata: dict[str, str] = field(default_factory=dict)  # checked, by declared name
    scopes: tuple[str, ...] | None = None  # those granted, where a callback says so
    tokens: ImportedTokens | None = None  # of the implicit flow


def state_in(query: Query) -> Secret:
    """The one state of a callback. Raises Failure CALLBACK_INVALID when there is none, or two."""
    values = [value for name, value in query if name == "state"]
    if len(values) != 1 or not values[0]:
        reject_callback("state is there twice" if len(values) > 1 else "state is missing")
    if len(values[0]) > _MAX_LENGTHS["state"] or not _VISIBLE.fullmatch(values[0]):
        reject_callback("state is malformed")
    return Secret(values[0])


def read_callback(
    query: Query,
    *,
    expected_issuer: str | None,
    iss_required: bool,
    spec: ProviderSpec | None = None,
    params: Mapping[str, str] | None = None,
    requested: Sequence[str] = (),
) -> Callback:
    """Read a callback for an attempt that was sent to `expected_issuer`.

    `spec` gives the provider's own names for code and error, and what else to read; `params` are
    the integration's, `requested` the scopes that were asked for. Raises Failure CALLBACK_INVALID:
    a parameter twice (RFC 6749 section 3.1) or too long, a missing or wrong `iss` (RFC 9207
    section 2.4, on error responses too), neither code nor error, or both.
    """
    given = unique_params(query)
    state = state_in(query)
    check_issuer(given.get("iss"), expected_issuer, iss_required)
    code_param = spec.callback_code_param if spec else "code"
    error = error_param(given, spec.callback_error_params if spec else ("error",))
    code = given.get(code_param)
    if error is not None:
        if code:
            reject_callback("a code and an error at once")
        denials = spec.callback_denials if spec else ("access_denied",)
        return Callback(None, state, denied=error in denials, error=error)
    if not code:
        if spec and spec.callback_missing_code_is_denial:
            return Callback(None, state, denied=True, error=None)
        reject_callback(f"{code_param} is missing")
    if spec and spec.decode_code:
        code = unquote(code)
    if not _VISIBLE.fullmatch(code):
        reject_callback(f"{code_param} is malformed")
    if spec is None:
        return Callback(Secret(code), state, denied=False, error=None)
    facts = callback_metadata(spec, given, params or {})
    return Callback(Secret(code), state, False, None, facts, callback_scopes(spec, given, requested))


def unique_params(query: Query) -> dict[str, str]:
    """Each parameter once (RFC 6749 section 3.1). Raises Failure CALLBACK_INVALID."""
    if len(query) > _MAX_PARAMS:
        reject_callback("too many parameters")
    for name, times in Counter(name for name, _ in query).items():
        if times > 1:
            reject_callback(f"{_shown(name)} is there twice")
    for name, value in query:
        if len(name) > 256 or len(value) > _MAX_LENGTHS.get(name, _MAX_VALUE_LENGTH):
            reject_callback(f"{_shown(name)} is too long")
    return dict(query)


def check_issuer(iss: str | None, expected: str | None, required: bool) -> None:
    """Raise Failure CALLBACK_INVALID for what looks like a mix-up (RFC 9207 section 2.4)."""
    if iss is None:
        if required:  # it was advertised: its absence is how a mix-up looks
            reject_callback("iss is missing, though the provider says it sends it")
    elif expected is not None and iss != expected:
        reject_callback("iss names another issuer")


def error_param(params: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The name of the error that came, or None."""
    for name in names:
        if name in params:
            return params[name] if _ERROR.fullmatch(params[name]) else "unreadable_error"
    return None


def _shown(name: str) -> str:
    return name if _ERROR.fullmatch(name) else "a parameter"


def reject_callback(why: str) -> NoReturn:
    """Raise Failure CALLBACK_INVALID."""
    raise Failure(ErrorCode.CALLBACK_INVALID, f"The provider's callback was refused: {why}.")
