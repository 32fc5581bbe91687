"""Sorts a refusal by who repairs it. Pure.

The rule behind the sorting: a grant is condemned only by an error that is known to mean
so. Providers invent names, gateways answer in their place, and a page of HTML with status
400 says nothing about a refresh token; calling it dead would send a subject back to a
consent page for somebody's outage.

A server that refuses a client has to answer 401 and name the scheme the client failed in (RFC 6749
section 5.2): that says who we are is what was refused, also where no body does.
"""

import codecs
import re
from datetime import datetime
from typing import Any

from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.schema import ProviderSpec
from providers.responses.durations import rate_limit_reset, retry_after
from providers.responses.json_paths import UnreadableBody, parse_body, value_at
from providers.responses.raw_reply import RawReply

# RFC 6749 section 5.2, RFC 7009 section 2.2.1, and the name several providers use for 3.1.2.4
_CLIENT_ERRORS = frozenset(
    {
        "invalid_client",
        "unauthorized_client",
        "invalid_request",
        "unsupported_grant_type",
        "unsupported_token_type",
        "invalid_scope",
        "invalid_target",  # RFC 8707 section 2
        "invalid_dpop_proof",  # RFC 9449 section 5
        "redirect_uri_mismatch",
        "invalid_redirect_uri",
    }
)
# OpenID Connect Core section 3.1.2.6, on a refresh too: only the subject can go on
_GRANT_ERRORS = frozenset(
    {
        "invalid_grant",
        "interaction_required",
        "login_required",
        "consent_required",
        "account_selection_required",
    }
)
_RATE_LIMIT_ERRORS = frozenset({"slow_down", "rate_limited", "ratelimited", "rate_limit_exceeded"})
# a field of JSON or of a form, wherever it was moved to
_TOKEN_FIELD = re.compile(rb'token"\s*:\s*(?:"[^"]|[0-9{[])|(?:^|&)[^=&\s]*token=[^&\s]', re.IGNORECASE)
_LOGGABLE_ERROR = re.compile(r"[a-z0-9_.\-]{1,64}")
# whoever asks for one of these was shown an access token, which says nothing about the client
_RESOURCE_SCHEMES = frozenset({"bearer", "dpop", "oauth", "token"})
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
# what stands first in a challenge, and isn't followed by "=" as a parameter is (RFC 9110 section 11.6.1)
_SCHEME = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:$|[ \t]+(?![ \t=]))")
_WRONG_ENDPOINT = frozenset({404, 405, 406, 410, 411, 413, 414, 415})


def error_name(spec: ProviderSpec, data: dict[str, Any]) -> str | None:
    """The name of the error a body reports, "" for one without a name, None when it reports none."""
    for rule in spec.error_rules:
        value = value_at(data, rule.path)
        if value is None:
            continue
        if rule.not_in is not None:
            fires = not _is_one_of(value, rule.not_in)
        else:
            fires = rule.values is None or _is_one_of(value, rule.values)
        if fires:
            return _error_text(value_at(data, rule.code_path or rule.path))
    if spec.status_field is not None and not _is_one_of(value_at(data, spec.status_field), spec.ok_values):
        return _error_text(value_at(data, spec.status_field))
    error = data.get("error")
    if isinstance(error, dict):
        return _error_text(error.get("code") or error.get("type"))
    return _error_text(error) if error else None


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Membership as JSON sees it: true is not 1."""
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values)


def _error_text(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def failure_of_reply(
    spec: ProviderSpec, reply: RawReply, error: str | None, now: datetime | None = None
) -> Failure:
    """The failure an unsuccessful reply means. `error` is its name, when it had a readable one.

    `now` is for a wait that is given as a date, in a reply without one of its own.
    """
    wait = retry_after(reply.headers, now)
    if wait is None and spec.rate_limit_reset_header:
        wait = rate_limit_reset(
            reply.headers, spec.rate_limit_reset_header, spec.rate_limit_reset_format, now
        )
    code = _code_of_reply(spec, reply, error)
    context = {"provider": spec.name, "provider_status": str(reply.status)}
    if error and _LOGGABLE_ERROR.fullmatch(error):
        context["provider_error"] = error
    said = f" and the error {context['provider_error']}" if "provider_error" in context else ""
    waits = code in (ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_RATE_LIMITED)
    return (_failure_class(reply) if code is ErrorCode.REPLY_UNREADABLE else Failure)(
        code,
        f"{spec.name} answered with status {reply.status}{said}",
        retry_after=wait if waits else None,
        **context,
    )


def _code_of_reply(spec: ProviderSpec, reply: RawReply, error: str | None) -> ErrorCode:
    status = reply.status
    if status == 429 or error in _RATE_LIMIT_ERRORS:
        return ErrorCode.PROVIDER_RATE_LIMITED
    if status >= 500 or error in spec.retryable_error_codes:
        return ErrorCode.PROVIDER_ERROR
    if error in _GRANT_ERRORS or error in spec.terminal_error_codes:
        return ErrorCode.GRANT_REJECTED
    if error in _CLIENT_ERRORS or (status == 401 and not error and _challenges_client(reply.headers)):
        return ErrorCode.CLIENT_REJECTED
    if error is None and (status < 400 or status in _WRONG_ENDPOINT):
        return ErrorCode.REPLY_UNREADABLE  # a redirect or a missing page: the definition is wrong
    return ErrorCode.PROVIDER_ERROR


def _challenges_client(headers: dict[str, str]) -> bool:
    """Does it name a scheme in which clients authenticate? Of several challenges one is enough."""
    challenges = _QUOTED.sub('""', headers.get("www-authenticate", "")).split(",")
    schemes = (_SCHEME.match(it.strip()) for it in challenges)
    return any(it is not None and it.group(1).lower() not in _RESOURCE_SCHEMES for it in schemes)


class UnreadableTokens(Failure):
    """REPLY_UNREADABLE of a yes with tokens in it all the same: what they were asked with is spent."""


def unreadable_reply(spec: ProviderSpec, reply: RawReply, why: str) -> Failure:
    """REPLY_UNREADABLE with the shape of what came, never its content."""
    return _failure_class(reply)(
        ErrorCode.REPLY_UNREADABLE,
        f"{spec.name} answered with status {reply.status} and {why}",
        provider=spec.name,
        provider_status=str(reply.status),
    )


def _failure_class(reply: RawReply) -> type[Failure]:
    body = reply.body.removeprefix(codecs.BOM_UTF8).lstrip()
    tokens = 200 <= reply.status < 300 and not body.startswith(b"<") and _TOKEN_FIELD.search(body)
    return UnreadableTokens if tokens else Failure


def reply_fields(spec: ProviderSpec, reply: RawReply) -> dict[str, Any]:
    """The reply's fields. Raises Failure REPLY_UNREADABLE."""
    try:
        return parse_body(reply.body, spec.response.format, spec.response.strip_body_prefix)
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None
