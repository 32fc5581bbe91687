"""What a callback says beside its code: parts of URLs, facts to keep, granted scopes, a signature. Pure.

The query was written by whoever sent the browser. So a value that ends in a URL meets its
parameter's own rule first, a fact meets its pattern, and scopes can only become fewer.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import NoReturn

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.patterns import matches
from providers.definition.schema import ProviderSpec
from providers.definition.templates import checked_params, fill_template

_MAX_VALUE_LENGTH = 1024


def callback_metadata(
    spec: ProviderSpec, query: Mapping[str, str], params: Mapping[str, str]
) -> dict[str, str]:
    """What is kept of a callback: declared facts by their own names, parts of URLs by their parameter's.

    `params` are the integration's; they stand in for a part of a URL that didn't come. Raises
    Failure CALLBACK_INVALID for one that is malformed, unexpected, or missing altogether.
    """
    facts: dict[str, str] = {}
    for name in spec.callback_metadata_params:
        if name in query:
            facts[name] = _checked_metadata(spec, name, query[name])
    for name, value in _template_params(spec, query).items():
        facts[name] = value
    _check_expected(spec, query, params)
    return facts


def callback_scopes(
    spec: ProviderSpec, query: Mapping[str, str], requested: Sequence[str]
) -> tuple[str, ...] | None:
    """The scopes that were granted, where the callback says so; None when it doesn't.

    Never more than were asked for: a browser could add any.
    """
    text = query.get(spec.callback_scope_param)
    if not spec.scope_from_callback or text is None:
        return None
    separator = spec.response.scope_separator or spec.scope_separator
    said = set(text.replace(separator, " ").split())
    return tuple(scope for scope in dict.fromkeys(requested) if scope in said)


def check_callback_signature(
    spec: ProviderSpec, query: Sequence[tuple[str, str]], secrets: Sequence[Secret]
) -> None:
    """Raise Failure CALLBACK_INVALID unless the query is signed with one of our client secrets.

    HMAC-SHA256 in hexadecimal over the other parameters, sorted; what separates them is escaped
    where it is part of a name or value, so that two queries never read the same. Compared in
    constant time.
    https://shopify.dev/docs/apps/build/authentication-authorization/access-tokens/authorization-code-grant
    """
    rule = spec.callback_verify
    if rule is None:
        return
    given = [value for name, value in query if name == rule.param]
    if len(given) != 1 or not given[0].isascii():
        _refuse(f"its signature {rule.param} is missing or there twice")
    message = "&".join(
        sorted(_escaped_pair(name, value) for name, value in query if name != rule.param)
    ).encode()
    right = False
    for secret in secrets:
        digest = hmac.new(secret.reveal().encode(), message, hashlib.sha256).hexdigest()
        right |= hmac.compare_digest(digest, given[0].lower())
    if not right:
        _refuse(f"its signature {rule.param} is wrong")


def _escaped_pair(name: str, value: str) -> str:
    name = name.replace("%", "%25").replace("&", "%26").replace("=", "%3D")
    return f"{name}={value.replace('%', '%25').replace('&', '%26')}"


def _checked_metadata(spec: ProviderSpec, name: str, value: str) -> str:
    pattern = spec.callback_patterns.get(name)
    plain = value.isprintable() and len(value) <= _MAX_VALUE_LENGTH
    if not plain or (pattern is not None and not matches(pattern, value)):
        _refuse(f"{name} is malformed")
    return value


def _template_params(spec: ProviderSpec, query: Mapping[str, str]) -> dict[str, str]:
    """Parts of URLs that came, by parameter and as they are used."""
    given = {
        name: query[said]
        for name, rule in spec.template_params.items()
        if rule.source == "callback" and (said := rule.callback_param or name) in query
    }
    try:
        checked = checked_params(spec, given)
    except Failure as failure:
        _refuse(f"{failure.context.get('field', 'a parameter')} is malformed")
    return {name: checked[name] for name in given}


def _check_expected(spec: ProviderSpec, query: Mapping[str, str], params: Mapping[str, str]) -> None:
    """A callback that names the account names the one that was asked for."""
    if not spec.callback_expected:
        return
    values = checked_params(spec, params)
    for name, template in spec.callback_expected.items():
        if query.get(name) != fill_template(template, values, spec):
            _refuse(f"{name} is missing, or names another account")


def _refuse(why: str) -> NoReturn:
    raise Failure(ErrorCode.CALLBACK_INVALID, f"The provider's callback was refused: {why}.")
