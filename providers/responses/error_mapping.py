"""Whether a reply is a success, else its failure: consent again, repair the client, or try later. Pure.

Only an error that is known to end a grant does so. Providers invent error names and gateways reply
in their place; ending a grant for such a reply would send the subject to a new consent because of an
outage. Whose turn each code is stands in `core.errors.FAILURES`.

A 401 that names the scheme of client authentication refuses the client, also without a body (RFC 6749
section 5.2).
"""

import codecs
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.provider_words import ReplyFailure
from evergrant_server.core.text import json_type
from providers.definition.patterns import first_group
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import (
    CODE_LISTS,
    ErrorMeaning,
    ErrorRule,
    RequestKind,
    is_one_of,
    text_of,
)
from providers.definition.schema_response import RevocationSpec
from providers.responses.raw_reply import (
    MAX_VALUE_LENGTH,
    RawReply,
    UnreadableBody,
    parse_body,
    retry_after,
    seconds_until_reset,
    stated_wait,
    value_at,
)
from providers.responses.reply_error import (
    PassingError,
    UnknownRefusal,
    UnnamedRefusal,
    body_text,
    error_in,
    rule_of,
)
from providers.responses.reply_words import description_of, words_of_reply

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
        "bad_redirect_uri",  # Slack
        "incorrect_client_credentials",  # GitHub
        "invalid_client_credentials",
        "invalid_client_id",  # Salesforce, Slack
        "invalid_client_secret",  # Zoho
    }
)
_NAMED_CLIENT_ERRORS = _CLIENT_ERRORS - {"invalid_request"}
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
    "subject": ErrorCode.GRANT_REJECTED,
    "passing": ErrorCode.PROVIDER_ERROR,
    "rate_limit": ErrorCode.PROVIDER_RATE_LIMITED,
}
# Names of no standard for a refresh token that is over, or whose subject has to do more. `invalid_token`
# and `access_denied` aren't among them: they pass at Eve Online and Exact Online.
_REFRESH_ERRORS = frozenset({"invalid_refresh_token", "mfa_required"})  # PayPal, Slack; Auth0
# The same for a code: GitHub, Todoist, Slack and Zoho.
_CODE_ERRORS = frozenset({"bad_verification_code", "bad_authorization_code", "invalid_code"})
# Descriptions of invalid_request, or of an error without a known name, that blame the credential alone.
_OVER = (
    r"(?:(?:the|this|your|provided|specified|supplied|passed)\s+)*"
    r"(?:(?:(?:invalid|expired|revoked|unknown|unrecogni[sz]ed|inactive|or|and)[,\s]+)+NOUN\b"
    r"|NOUN\b.{0,60}\b(?:invalid|expired|revoked|unknown|inactive|no longer valid"
    r"|not (?:valid|found)|does(?: not|n't) exist|already(?: been)? used))"
)
# A refresh names no other token: "Token has been revoked", by @jmondi/oauth2-server. Authlib's servers miss
# the user who was disabled or deleted.
_TOKEN_IS_OVER = re.compile(
    _OVER.replace("NOUN", "refresh[ _-]?token")
    + r"|(?:(?:the|this|your)\s+)*token\s+(?:(?:has(?: been)?|is|was)\s+)?(?:revoked|expired|inactive)\W*$"
    + r"|there is no ['\"]user['\"] for this token\b",
    re.IGNORECASE,
)
_CODE_IS_OVER = re.compile(_OVER.replace("NOUN", "(?:authori[sz]ation|device)[ _-]?code"), re.IGNORECASE)
# What such a description may not mention: then it is the request, or another try may help.
_OTHER_WORDS = re.compile(
    r"missing|required|retry|try again|concurrent|different client|scope|denied", re.IGNORECASE
)
# Descriptions by which a server blames itself, or its load, beside a name that says nothing.
_FAULT_WORDS = re.compile(
    r"\b(?:internal (?:server )?error|temporarily unavailable|overload|under maintenance|time[d -]?out)\b",
    re.IGNORECASE,
)
_LIMIT_WORDS = re.compile(r"\b(?:rate limit|too many requests|request limit)\b", re.IGNORECASE)
# Descriptions of invalid_grant that speak of the redirect URI alone, which is the integration's.
_REDIRECT_WORDS = re.compile(
    r"(?:(?:the|this|your|provided|specified|invalid|incorrect|wrong|mismatching)\s+)*"
    r"['\"`]?(?:redirect|callback)[ _-]?ur[il]\b",
    re.IGNORECASE,
)
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


@dataclass(frozen=True)
class Reading:
    """What a reply that isn't a success is read as, and what says so, for an operator who doubts it."""

    code: ErrorCode
    by: str  # a field of the definition, or a standard
    rule: ErrorRule | None = None  # where the field is `error_rules`
    means: ErrorMeaning | None = None  # where the definition or the description says so


def error_name(spec: ProviderSpec, reply: RawReply, at: RequestKind | None = None) -> str | None:
    """The name of a reply's error, "" for one without a name, None for no error or an unreadable body."""
    error = error_in(spec, reply, at)
    return error.name if error else None


def failure_of_reply(
    spec: ProviderSpec,
    reply: RawReply,
    error: str | None,
    now: datetime | None = None,
    at: RequestKind | None = None,
) -> ReplyFailure:
    """The failure of an unsuccessful reply with the error name `error`, and with what the reply says.

    `now` converts a retry date when the reply has no Date header. `at` is what was requested; None: rules
    about any request apply.
    """
    reading = reading_of(spec, reply, error, at)
    code, words = reading.code, words_of_reply(spec, reply, error)
    context = {"provider": spec.name, "provider_status": str(reply.status)}
    if error and _LOGGABLE_ERROR.fullmatch(error) and words.error == error:
        context["provider_error"] = error
    suffix = f" and the error {context['provider_error']}" if "provider_error" in context else ""
    kind = _class_of_error(reading, reply, error)
    return (_failure_class(reply) if code is ErrorCode.REPLY_UNREADABLE else kind)(
        code,
        f"{spec.name} answered with status {reply.status}{suffix}",
        retry_after=wait_of_reply(spec, reply, code, now),
        **context,
    ).with_words(words)


def wait_of_reply(
    spec: ProviderSpec, reply: RawReply, code: ErrorCode, now: datetime | None = None
) -> float | None:
    """How long to wait after a failure that passes, in seconds, where the reply says so.

    By Retry-After (RFC 9110 section 10.2.3), else by the definition's own header of a rate limit, or where
    the definition says that bodies have it.
    """
    if code not in (ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_RATE_LIMITED):
        return None
    wait, reset = retry_after(reply.headers, now), spec.rate_limit_reset
    if wait is None and reset is not None and code is ErrorCode.PROVIDER_RATE_LIMITED:
        wait = seconds_until_reset(reply.headers, reset.header, reset.format, now)
    return _wait_in_body(spec, reply) if wait is None else wait


def _wait_in_body(spec: ProviderSpec, reply: RawReply) -> float | None:
    rule = spec.wait_in_body
    if rule is None:
        return None
    value: Any = body_text(reply)
    if rule.path is not None:
        with suppress(Failure):
            value = value_at(reply_fields(spec, reply), rule.path)
    if rule.pattern is not None:
        value = first_group(rule.pattern, text_of(value)[:MAX_VALUE_LENGTH])
    return stated_wait(value, rule.unit)


def reading_of(
    spec: ProviderSpec, reply: RawReply, error: str | None, at: RequestKind | None = None
) -> Reading:
    """What an unsuccessful reply with the error name `error` is read as."""
    status = reply.status
    if status == 429 or error in _RATE_LIMIT_ERRORS:
        return Reading(ErrorCode.PROVIDER_RATE_LIMITED, "RFC 6585 section 4, and the usual names of limits")
    rule = rule_of(spec, reply, at)
    field = "error_rules" if rule is not None and rule.means else spec.list_of(error)
    if field is not None:  # the definition knows better than the status
        means = rule.means if rule is not None and rule.means else CODE_LISTS[field]
        return Reading(_code_of(means, at), field, rule if field == "error_rules" else None, means)
    if error in _PASSING_ERRORS:
        return Reading(ErrorCode.PROVIDER_ERROR, "RFC 6749 section 4.1.2.1", means="passing")
    if status == 408:
        return Reading(ErrorCode.PROVIDER_ERROR, "RFC 9110 section 15.5.9", means="passing")
    if status >= 500:
        return Reading(ErrorCode.PROVIDER_ERROR, "RFC 9110 section 15.6")
    known = _by_description(spec, reply, error, at) or _by_standard(error, at)
    if known is not None:
        return known
    if status == 401 and not error and _challenges_client(reply.headers):
        return Reading(ErrorCode.CLIENT_REJECTED, "RFC 6749 section 5.2: WWW-Authenticate")
    if error is None and (status < 400 or status in _WRONG_ENDPOINT):
        # such as a redirect: the definition is wrong
        return Reading(ErrorCode.REPLY_UNREADABLE, "no error in it, and no status of a token endpoint")
    return Reading(ErrorCode.PROVIDER_ERROR, "nothing: no rule and no standard knows it")


def _by_standard(error: str | None, at: RequestKind | None) -> Reading | None:
    """What an error of this name is at every provider."""
    if error in _GRANT_ERRORS or (at == "refresh" and error in _REFRESH_ERRORS):
        return Reading(ErrorCode.GRANT_REJECTED, "the standards' names of errors that end a grant")
    if error in _CODE_ERRORS and at != "refresh":
        return Reading(ErrorCode.GRANT_REJECTED, "the usual names of a code that is over")
    if error in _CLIENT_ERRORS:
        return Reading(ErrorCode.CLIENT_REJECTED, "the standards' names of errors of a client")
    return None


def _by_description(
    spec: ProviderSpec, reply: RawReply, error: str | None, at: RequestKind | None
) -> Reading | None:
    """What the sentence beside an error says where its name says little."""
    description = description_of(spec, reply, error)
    if error == "invalid_grant" and at != "refresh" and _REDIRECT_WORDS.match(description):
        return Reading(ErrorCode.CLIENT_REJECTED, "a description that blames the redirect URI")
    if error in _GRANT_ERRORS or error in _NAMED_CLIENT_ERRORS:
        return None
    if _is_over(at, reply.status, description):
        return Reading(ErrorCode.GRANT_REJECTED, "a description that says that the token or code is over")
    if _LIMIT_WORDS.search(description):
        limited = "a description that names a limit"
        return Reading(ErrorCode.PROVIDER_RATE_LIMITED, limited, means="rate_limit")
    if _FAULT_WORDS.search(description):
        return Reading(ErrorCode.PROVIDER_ERROR, "a description of a fault that passes", means="passing")
    return None


def _is_over(at: RequestKind | None, status: int, description: str) -> bool:
    """Whether the description of a refusal blames the refresh token, or the code, alone."""
    if status not in (400, 401, 403, 404) or at not in ("refresh", "exchange", "device"):
        return False
    words = _TOKEN_IS_OVER if at == "refresh" else _CODE_IS_OVER
    return words.match(description) is not None and _OTHER_WORDS.search(description) is None


def _code_of(means: ErrorMeaning, at: RequestKind | None) -> ErrorCode:
    """What a subject has to do first leaves a token that is to be revoked alive."""
    if means == "subject" and at == "revocation":
        return ErrorCode.PROVIDER_ERROR
    return _CODES[means]


def _class_of_error(reading: Reading, reply: RawReply, error: str | None) -> type[ReplyFailure]:
    still_alive = reading.means == "subject" and reading.code is ErrorCode.PROVIDER_ERROR
    if reading.means == "passing" or still_alive:
        return PassingError
    markup = reply.body.lstrip().startswith(b"<")  # a gateway's page
    if markup or reading.means is not None or not 400 <= reply.status < 500:
        return ReplyFailure
    if reply.status == 400 and (not error or error == "invalid_request"):
        return UnnamedRefusal
    return UnknownRefusal if reading.code is ErrorCode.PROVIDER_ERROR else ReplyFailure


def _challenges_client(headers: dict[str, str]) -> bool:
    """Whether any challenge names a scheme of client authentication."""
    challenges = _QUOTED.sub('""', headers.get("www-authenticate", "")).split(",")
    schemes = filter(None, (_SCHEME.match(challenge.strip()) for challenge in challenges))
    return any(scheme.group(1).lower() not in _RESOURCE_SCHEMES for scheme in schemes)


class UnreadableTokens(ReplyFailure):
    """An unparseable 2xx reply that appears to contain tokens. The credential that was sent is spent."""


def unreadable_reply(spec: ProviderSpec, reply: RawReply, why: str) -> Failure:
    """REPLY_UNREADABLE with a description of the reply; its content only in the words for admins."""
    return _failure_class(reply)(
        ErrorCode.REPLY_UNREADABLE,
        f"{spec.name} answered with status {reply.status} and {why}",
        provider=spec.name,
        provider_status=str(reply.status),
    ).with_words(words_of_reply(spec, reply, None))


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
    revocation = spec.revocation or RevocationSpec()
    error, rule = error_name(spec, reply, "revocation"), rule_of(spec, reply, "revocation")
    means = rule.means if rule is not None else None
    if error and is_one_of(error, revocation.gone_error_codes) and means in (None, "dead_token"):
        return
    in_body = error is not None and bool(spec.error_rules or spec.status_field)
    if in_body or reply.status not in revocation.success_statuses:
        raise failure_of_reply(spec, reply, error, at="revocation")


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
    spec: ProviderSpec,
    reply: RawReply,
    success: tuple[int, ...],
    now: datetime | None = None,
    at: RequestKind | None = None,
) -> None:
    """Raise for a status that isn't a success, and for an error in a reply whose status is one."""
    error = error_name(spec, reply, at)
    if reply.status not in success or error is not None:
        raise failure_of_reply(spec, reply, error, now, at)
