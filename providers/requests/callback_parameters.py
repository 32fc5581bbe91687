"""The parameters that callbacks of every flow share: state, issuer, error. Pure.

The query is untrusted: an attacker may have sent the browser.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret

Query = Sequence[tuple[str, str]]

VISIBLE = re.compile(r"[\x20-\x7e]+")  # VSCHAR (RFC 6749 appendix A.5, A.11)
_MAX_PARAMS = 50
_MAX_LENGTHS = {"state": 512, "iss": 2048}
_MAX_VALUE_LENGTH = 8192
_ERROR = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def state_in(query: Query) -> Secret:
    """The state of a callback. Raises Failure CALLBACK_INVALID when it is missing or repeated."""
    values = [value for name, value in query if name == "state"]
    if len(values) != 1 or not values[0]:
        reject_callback("state is repeated" if len(values) > 1 else "state is missing")
    if len(values[0]) > _MAX_LENGTHS["state"] or not VISIBLE.fullmatch(values[0]):
        reject_callback("state is malformed")
    return Secret(values[0])


def checked_query(
    query: Query, expected_issuer: str | None, iss_required: bool
) -> tuple[dict[str, str], Secret]:
    """The parameters and the state, after the check of `iss` (RFC 9207). Raises Failure CALLBACK_INVALID.

    A missing or wrong `iss` may be a mix-up attack (RFC 9207 section 2.4).
    """
    params = unique_params(query)
    state = state_in(query)
    iss = params.get("iss")
    if iss is None and iss_required:
        reject_callback("iss is missing, though the provider advertises it")
    if iss is not None and expected_issuer is not None and iss != expected_issuer:
        reject_callback("iss names another issuer")
    return params, state


def unique_params(query: Query) -> dict[str, str]:
    """The parameters, none repeated (RFC 6749 section 3.1). Raises Failure CALLBACK_INVALID."""
    if len(query) > _MAX_PARAMS:
        reject_callback("too many parameters")
    for name, count in Counter(name for name, _ in query).items():
        if count > 1:
            reject_callback(f"{_shown(name)} is repeated")
    for name, value in query:
        if len(name) > 256 or len(value) > _MAX_LENGTHS.get(name, _MAX_VALUE_LENGTH):
            reject_callback(f"{_shown(name)} is too long")
    return dict(query)


def error_param(params: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The error code, or None."""
    for name in names:
        if name in params:
            return params[name] if _ERROR.fullmatch(params[name]) else "unreadable_error"
    return None


def reject_callback(why: str) -> NoReturn:
    """Raise Failure CALLBACK_INVALID."""
    raise Failure(ErrorCode.CALLBACK_INVALID, f"The provider's callback was refused: {why}.")


def _shown(name: str) -> str:
    return name if _ERROR.fullmatch(name) else "a parameter"
