"""Whether a reply is a success, else its failure: consent again, repair the client, or try later. Pure.

Only an error that is known to end a grant does so. Providers invent error names and gateways reply
in their place; ending a grant for such a reply would send the subject to a new consent because of an
outage.

A 401 that names the scheme of client authentication refuses the client, also without a body (RFC 6749
section 5.2).
"""

import codecs
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.provider_words import ReplyFailure
from evergrant_server.core.text import json_type
from providers.definition.patterns import matches
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import ErrorMeaning, FieldTest
from providers.definition.schema_response import RevocationSpec
from providers.responses.raw_reply import (
    MAX_VALUE_LENGTH,
    RawReply,
    UnreadableBody,
    parse_body,
    retry_after,
    seconds_until_reset,
    value_at,
)
from providers.responses.reply_words import words_of_reply


@dataclass(frozen=True)
class ReplyError:
    """An error of a reply: its name, "" where it has none, and its meaning, if a rule states one."""

    name: str
    means: ErrorMeaning | None = None


class PassingError(ReplyFailure):
    """A reply whose error says that the provider can't serve the request now, with any status."""


class UnnamedRefusal(ReplyFailure):
    """A 400 that doesn't say what is refused, our client, its request or the token: it names no error, or
    the one of any malformed request (RFC 6749 section 5.2)."""


def error_in(spec: ProviderSpec, data: dict[str, Any]) -> ReplyError | None:
    """The error of a reply with these fields: by the definition's rules, else the standard `error`."""
    for rule in spec.error_rules:
        if holds(rule, data) and (rule.when is None or holds(rule.when, data)):
            return ReplyError(_text(value_at(data, rule.code_path or rule.path)), rule.means)
    if spec.status_field is not None and not _is_one_of(value_at(data, spec.status_field), spec.ok_values):
        return ReplyError(_text(value_at(data, spec.status_field)))
    error = data.get("error")
    if isinstance(error, dict) and error:
        return ReplyError(_text(error.get("code") or error.get("type")))
    return ReplyError(_text(error)) if error else None


def holds(test: FieldTest, data: dict[str, Any]) -> bool:
    """Whether the condition on a field holds in these fields."""
    value = value_at(data, test.path)
    if value is None:
        return False
    if test.not_in is not None:
        return not _is_one_of(value, test.not_in)
    if test.pattern is not None:
        return matches(test.pattern, _text(value)[:MAX_VALUE_LENGTH])
    return test.values is None or _is_one_of(value, test.values)


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Membership by JSON equality, in which true is not 1."""
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


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
# OpenID Connect Core section 3.1.2.6, in a reply to a refresh too
_GRANT_ERRORS = frozenset(
    {
        "invalid_grant",
        "interaction_required",
        "login_required",
        "consent_required",
        "account_selection_required",
    }
)
_CODES: dict[ErrorMeaning, ErrorCode] = {
    "dead_token": ErrorCode.GRANT_REJECTED,
    "client": ErrorCode.CLIENT_REJECTED,
    "passing": ErrorCode.PROVIDER_ERROR,
    "rate_limit": ErrorCode.PROVIDER_RATE_LIMITED,
}
_PASSING_ERRORS = frozenset({"server_error", "temporarily_unavailable"})  # RFC 6749 section 4.1.2.1
_RATE_LIMIT_ERRORS = frozenset({"slow_down", "rate_limited", "ratelimited", "rate_limit_exceeded"})
# a token field of JSON or of a form
_TOKEN_FIELD = re.compile(rb'token"\s*:\s*(?:"[^"]|[0-9{[])|(?:^|&)[^=&\s]*token=[^&\s]', re.IGNORECASE)
_LOGGABLE_ERROR = re.compile(r"[a-z0-9_.\-]{1,64}")
# schemes of access tokens, which don't concern the client
_RESOURCE_SCHEMES = frozenset({"bearer", "dpop", "oauth", "token"})
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
# the scheme of a challenge; a parameter would be followed by "=" (RFC 9110 section 11.6.1)
_SCHEME = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:$|[ \t]+(?![ \t=]))")
_TOKEN_REFUSALS = frozenset({"400", "404", "410", "422"})  # statuses, where the client isn't at fault
_WRONG_ENDPOINT = frozenset({404, 405, 406, 410, 411, 413, 414, 415})


def error_name(spec: ProviderSpec, reply: RawReply) -> str | None:
    """The name of a reply's error, "" for one without a name, None for no error or an unreadable body."""
    error = _error_of(spec, reply)
    return error.name if error else None


def _error_of(spec: ProviderSpec, reply: RawReply) -> ReplyError | None:
    try:
        return error_in(spec, reply_fields(spec, reply))
    except Failure:
        return None


def failure_of_reply(
    spec: ProviderSpec, reply: RawReply, error: str | None, now: datetime | None = None
) -> ReplyFailure:
    """The failure of an unsuccessful reply with the error name `error`, and with what the reply says.

    `now` converts a retry date when the reply has no Date header.
    """
    code = _code_of_reply(spec, reply, error)
    wait = wait_of_reply(spec, reply, code, now)
    words = words_of_reply(spec, reply, error)
    context = {"provider": spec.name, "provider_status": str(reply.status)}
    if error and _LOGGABLE_ERROR.fullmatch(error) and words.error == error:
        context["provider_error"] = error
    suffix = f" and the error {context['provider_error']}" if "provider_error" in context else ""
    kind = _class_of_error(spec, reply, error)
    return (_failure_class(reply) if code is ErrorCode.REPLY_UNREADABLE else kind)(
        code,
        f"{spec.name} answered with status {reply.status}{suffix}",
        retry_after=wait,
        **context,
    ).with_words(words)


def wait_of_reply(
    spec: ProviderSpec, reply: RawReply, code: ErrorCode, now: datetime | None = None
) -> float | None:
    """How long to wait after a failure that passes, in seconds, where the reply says so.

    By Retry-After (RFC 9110 section 10.2.3), else by the definition's own header of a rate limit.
    """
    if code not in (ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_RATE_LIMITED):
        return None
    wait, reset = retry_after(reply.headers, now), spec.rate_limit_reset
    if wait is None and reset is not None and code is ErrorCode.PROVIDER_RATE_LIMITED:
        wait = seconds_until_reset(reply.headers, reset.header, reset.format, now)
    return wait


def _code_of_reply(spec: ProviderSpec, reply: RawReply, error: str | None) -> ErrorCode:
    status = reply.status
    if status == 429 or error in _RATE_LIMIT_ERRORS:
        return ErrorCode.PROVIDER_RATE_LIMITED
    means = _meaning(spec, reply, error)
    if means is not None:  # the definition knows better than the status
        return _CODES[means]
    if status >= 500:
        return ErrorCode.PROVIDER_ERROR
    if error in _GRANT_ERRORS:
        return ErrorCode.GRANT_REJECTED
    if error in _CLIENT_ERRORS or (status == 401 and not error and _challenges_client(reply.headers)):
        return ErrorCode.CLIENT_REJECTED
    if error is None and (status < 400 or status in _WRONG_ENDPOINT):
        return ErrorCode.REPLY_UNREADABLE  # such as a redirect: the definition is wrong
    return ErrorCode.PROVIDER_ERROR


def _meaning(spec: ProviderSpec, reply: RawReply, error: str | None) -> ErrorMeaning | None:
    """What the definition says about this reply's error."""
    named = _error_of(spec, reply)
    return (named.means if named else None) or spec.meaning_of(error)


def _class_of_error(spec: ProviderSpec, reply: RawReply, error: str | None) -> type[ReplyFailure]:
    if _is_passing(spec, reply, error):
        return PassingError
    markup = reply.body.lstrip().startswith(b"<")  # a gateway's page
    unnamed = reply.status == 400 and not markup and (not error or error == "invalid_request")
    return UnnamedRefusal if unnamed and _meaning(spec, reply, error) is None else ReplyFailure


def _is_passing(spec: ProviderSpec, reply: RawReply, error: str | None) -> bool:
    means = _meaning(spec, reply, error)
    return means == "passing" or (means is None and error in _PASSING_ERRORS)


def _challenges_client(headers: dict[str, str]) -> bool:
    """Whether any challenge names a scheme of client authentication."""
    challenges = _QUOTED.sub('""', headers.get("www-authenticate", "")).split(",")
    schemes = (_SCHEME.match(challenge.strip()) for challenge in challenges)
    return any(scheme and scheme.group(1).lower() not in _RESOURCE_SCHEMES for scheme in schemes)


class UnreadableTokens(ReplyFailure):
    """An unparseable 2xx reply that appears to contain tokens. The credential that was sent is spent."""


def unreadable_reply(spec: ProviderSpec, reply: RawReply, why: str) -> Failure:
    """REPLY_UNREADABLE with a description of the reply, without its content."""
    return _failure_class(reply)(
        ErrorCode.REPLY_UNREADABLE,
        f"{spec.name} answered with status {reply.status} and {why}",
        provider=spec.name,
        provider_status=str(reply.status),
    )


def _failure_class(reply: RawReply) -> type[ReplyFailure]:
    body = reply.body.removeprefix(codecs.BOM_UTF8).lstrip()
    tokens = 200 <= reply.status < 300 and not body.startswith(b"<") and _TOKEN_FIELD.search(body)
    return UnreadableTokens if tokens else ReplyFailure


def reply_fields(spec: ProviderSpec, reply: RawReply) -> dict[str, Any]:
    """The reply's fields. Raises Failure REPLY_UNREADABLE."""
    try:
        return parse_body(reply.body, prefix=spec.response.strip_body_prefix)
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None


def read_revocation(spec: ProviderSpec, reply: RawReply) -> None:
    """Return when the provider has confirmed the revocation, else raise Failure.

    200 confirms it for an unknown token too (RFC 7009 section 2.2). The body is ignored unless the
    definition has rules for errors in it; a rule that calls an error passing, or the client's, goes
    before the names of tokens that are gone. After 503 the token is still valid.
    """
    rule = spec.revocation or RevocationSpec()
    named = _error_of(spec, reply)
    error = named.name if named else None
    if named is not None and error in rule.gone_error_codes and named.means in (None, "dead_token"):
        return
    if reply.status not in rule.success_statuses:
        raise failure_of_reply(spec, reply, error)
    if error is not None and (spec.error_rules or spec.status_field):
        raise failure_of_reply(spec, reply, error)


def is_unsupported_token_type(spec: ProviderSpec, reply: RawReply) -> bool:
    """Whether the provider can't revoke tokens of this type (RFC 7009 section 2.2.1)."""
    return reply.status == 400 and error_name(spec, reply) == "unsupported_token_type"


def is_token_refused(failure: Failure, *, client_works: bool = False) -> bool:
    """Whether a revocation failed for its token's sake: the provider doesn't know it, or no longer.

    RFC 7009 section 2.2 wants 200 for an unknown token; some answer with an error instead. An error
    that is known to pass, or to be the client's, says nothing about the token. `client_works`: the same
    client has just revoked another one, so it isn't refused.
    """
    if failure.code is ErrorCode.GRANT_REJECTED:
        return True
    codes = (ErrorCode.REPLY_UNREADABLE, ErrorCode.PROVIDER_ERROR)
    if failure.code not in codes and not (client_works and failure.code is ErrorCode.CLIENT_REJECTED):
        return False
    passes = isinstance(failure, PassingError)
    return not passes and failure.context.get("provider_status") in _TOKEN_REFUSALS


def read_introspection(spec: ProviderSpec, reply: RawReply) -> bool:
    """Whether the token is active, for which `active` must be a JSON boolean (RFC 7662 section 2.2)."""
    raise_for_failure(spec, reply, (200,))
    active = reply_fields(spec, reply).get("active")
    if not isinstance(active, bool):
        raise unreadable_reply(spec, reply, f"active that is {json_type(active)}")
    return active


def raise_for_failure(
    spec: ProviderSpec, reply: RawReply, success: tuple[int, ...], now: datetime | None = None
) -> None:
    """Raise for a status that isn't a success, and for an error in a reply whose status is one."""
    error = error_name(spec, reply)
    if reply.status not in success or error is not None:
        raise failure_of_reply(spec, reply, error, now)
