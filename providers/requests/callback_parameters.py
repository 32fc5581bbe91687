"""Reads the parameters of callbacks: state, issuer, error, template parameters, metadata, a signature. Pure.

The query is untrusted, since an attacker may have sent the browser: a value that ends in a URL meets
its parameter's rule first, metadata meets its pattern, and scopes are only reduced.
"""

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.provider_words import CALLBACK_REFUSED, ProviderWords
from evergrant_server.core.secret import Secret
from providers.definition.patterns import matches
from providers.definition.schema import ProviderSpec
from providers.definition.templates import checked_params, fill_template
from providers.responses.raw_reply import MAX_VALUE_LENGTH

Query = Sequence[tuple[str, str]]

VISIBLE = re.compile(r"[\x20-\x7e]+")  # VSCHAR (RFC 6749 appendix A.5, A.11)
_MAX_PARAMS = 50
_MAX_LENGTHS = {"state": 512, "iss": 2048}
_MAX_VALUE_LENGTH = 8192
_DESCRIPTIONS = ("error_description", "error_message", "error_reason", "message")
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
    """The parameters and the state, after `check_issuer`. Raises Failure CALLBACK_INVALID."""
    params = unique_params(query)
    state = state_in(query)
    check_issuer(params.get("iss"), expected_issuer, iss_required)
    return params, state


def check_issuer(iss: str | None, expected_issuer: str | None, iss_required: bool) -> None:
    """Raise Failure CALLBACK_INVALID for a missing or wrong `iss`: a mix-up attack (RFC 9207 section 2.4)."""
    if iss is None and iss_required:
        reject_callback("iss is missing, though the provider advertises it")
    if iss is not None and expected_issuer is not None and iss != expected_issuer:
        reject_callback("iss names another issuer")


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


def callback_words(
    query: Query, error_params: Sequence[str] = ("error",), *, unauthenticated: bool = False
) -> ProviderWords | None:
    """What a callback says about an error, cleaned of its other parameters; None without an error."""
    given = dict(query)
    error = next((given[name] for name in error_params if name in given), None)
    if error is None:
        return None
    description = next((given[name] for name in _DESCRIPTIONS if given.get(name)), None)
    public = {*error_params, *_DESCRIPTIONS, "error_uri", "iss", "scope"}
    secrets = [value for name, value in query if name not in public]
    return ProviderWords.cleaned(error, description, secrets, unauthenticated=unauthenticated)


def reject_callback(why: str) -> NoReturn:
    """Raise Failure CALLBACK_INVALID."""
    raise Failure(ErrorCode.CALLBACK_INVALID, f"{CALLBACK_REFUSED}{why}.")


def _shown(name: str) -> str:
    return name if _ERROR.fullmatch(name) else "a parameter"


def callback_metadata(
    spec: ProviderSpec, query: Mapping[str, str], params: Mapping[str, str]
) -> dict[str, str]:
    """The declared metadata of a callback, and its template parameters by their own names.

    `params` are the integration's template parameters. Raises Failure CALLBACK_INVALID for a value
    that is malformed, unexpected or missing.
    """
    metadata = {name: query[name] for name in spec.callback_metadata_params if name in query}
    for name, value in metadata.items():
        pattern = spec.callback_patterns.get(name)
        plain = value.isprintable() and len(value) <= MAX_VALUE_LENGTH
        if not plain or (pattern is not None and not matches(pattern, value)):
            reject_callback(f"{name} is malformed")
    metadata |= _template_params(spec, query)
    _check_expected(spec, query, params)
    return metadata


def callback_scopes(
    spec: ProviderSpec, query: Mapping[str, str], requested: Sequence[str]
) -> tuple[str, ...] | None:
    """The granted scopes among the requested, or None where the callback doesn't hold them."""
    text = query.get(spec.callback_scope_param)
    if not spec.scope_from_callback or text is None:
        return None
    separator = spec.response.scope_separator or spec.scope_separator
    granted = set(text.replace(separator, " ").split())
    return tuple(scope for scope in dict.fromkeys(requested) if scope in granted)


def check_callback_signature(spec: ProviderSpec, query: Query, secrets: Sequence[Secret]) -> None:
    """Raise Failure CALLBACK_INVALID unless one of the client secrets signed the query.

    HMAC-SHA256 in hexadecimal over the other parameters, sorted. Separators are escaped in names and
    values, so that no two queries have the same message. The comparison takes constant time.
    https://shopify.dev/docs/apps/build/authentication-authorization/access-tokens/authorization-code-grant
    """
    rule = spec.callback_verify
    if rule is None:
        return
    signatures = [value for name, value in query if name == rule.param]
    if len(signatures) != 1 or not signatures[0].isascii():
        reject_callback(f"its signature {rule.param} is missing or repeated")
    pairs = [_escaped_pair(name, value) for name, value in query if name != rule.param]
    message = "&".join(sorted(pairs)).encode()
    valid = False
    for secret in secrets:
        digest = hmac.new(secret.reveal().encode(), message, hashlib.sha256).hexdigest()
        valid |= hmac.compare_digest(digest, signatures[0].lower())
    if not valid:
        reject_callback(f"its signature {rule.param} is wrong")


def _escaped_pair(name: str, value: str) -> str:
    name = name.replace("%", "%25").replace("&", "%26").replace("=", "%3D")
    return f"{name}={value.replace('%', '%25').replace('&', '%26')}"


def _template_params(spec: ProviderSpec, query: Mapping[str, str]) -> dict[str, str]:
    """The template parameters in the callback, checked and normalised."""
    given = {
        name: query[param]
        for name, rule in spec.template_params.items()
        if rule.source == "callback" and (param := rule.callback_param or name) in query
    }
    try:
        checked = checked_params(spec, given)
    except Failure as failure:
        reject_callback(f"{failure.context.get('field', 'a parameter')} is malformed")
    return {name: checked[name] for name in given}


def _check_expected(spec: ProviderSpec, query: Mapping[str, str], params: Mapping[str, str]) -> None:
    """Raise Failure CALLBACK_INVALID for a callback of another account than the requested."""
    if not spec.callback_expected:
        return
    values = checked_params(spec, params)
    for name, template in spec.callback_expected.items():
        if query.get(name) != fill_template(template, values, spec):
            reject_callback(f"{name} is missing, or names another account")
