"""Finds the error of a reply: its name, and the definition's rule that names it. Pure."""

from dataclasses import dataclass
from typing import Any

from evergrant_server.core.provider_words import ReplyFailure
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import (
    BodyKind,
    ErrorRule,
    FieldTest,
    ReplyTest,
    RequestKind,
    is_one_of,
    text_of,
)
from providers.responses.raw_reply import RawReply, UnreadableBody, parse_body, value_at


@dataclass(frozen=True)
class ReplyError:
    """An error of a reply: its name, "" where it has none, and the rule that found it, if one did."""

    name: str
    rule: ErrorRule | None = None


class PassingError(ReplyFailure):
    """A reply whose error says that the provider can't serve the request now, with any status."""


class UnknownRefusal(ReplyFailure):
    """A 4xx that is no page, and whose error neither a definition nor a standard knows, or that of any
    malformed request: it doesn't say whether our client, its request or the token is refused."""


class UnnamedRefusal(UnknownRefusal):
    """A 400 that doesn't say what is refused, our client, its request or the token: it names no error, or
    the one of any malformed request (RFC 6749 section 5.2)."""


def error_in(spec: ProviderSpec, reply: RawReply, at: RequestKind | None = None) -> ReplyError | None:
    """The error of a reply to a request of this kind: by the definition's rules, else the standard `error`.

    None for a reply without an error, and for an unreadable one that no rule describes.
    """
    try:
        data = parse_body(reply.body, prefix=spec.response.strip_body_prefix)
    except UnreadableBody:
        data = None
    for rule in spec.error_rules:
        if rule.applies_at(at) and _rule_holds(rule, reply, data):
            return ReplyError(_name_by(rule, data), rule)
    if data is None:
        return None
    if spec.status_field is not None and not is_one_of(value_at(data, spec.status_field), spec.ok_values):
        return ReplyError(text_of(value_at(data, spec.status_field)))
    error = data.get("error")
    if isinstance(error, dict) and error:
        return ReplyError(text_of(error.get("code") or error.get("type")))
    return ReplyError(text_of(error)) if error else None


def rule_of(spec: ProviderSpec, reply: RawReply, at: RequestKind | None = None) -> ErrorRule | None:
    """The definition's rule that names the error of a reply, if one does."""
    error = error_in(spec, reply, at)
    return error.rule if error is not None else None


def _name_by(rule: ErrorRule, data: dict[str, Any] | None) -> str:
    """The name of the error that a rule has found; `error` is the name of one found by its description."""
    by_description = rule.means is not None and rule.path is not None and rule.path.endswith("description")
    path = rule.code_path or ("error" if by_description else None) or rule.path
    return text_of(value_at(data, path)) or text_of(value_at(data, rule.path))


def holds(test: FieldTest, data: dict[str, Any]) -> bool:
    """Whether the condition on a field holds in these fields."""
    value = value_at(data, test.path)
    return value is not None and test.accepts(value)


def body_text(reply: RawReply) -> str:
    """The body as text with single spaces; "" for an empty one."""
    return " ".join(reply.body.decode("utf-8-sig", "replace").split())


def body_kind(reply: RawReply, data: dict[str, Any] | None) -> BodyKind | None:
    """What a body is that is no JSON object; a form counts as text too."""
    text = body_text(reply)
    if not text:
        return "empty"
    if text.startswith("<"):
        return "html"
    return "text" if data is None or not text.startswith("{") else None


def _rule_holds(rule: ErrorRule, reply: RawReply, data: dict[str, Any] | None) -> bool:
    status_fits = not rule.status or reply.status in rule.status
    return status_fits and all(_test_holds(test, reply, data) for test in rule.tests())


def _test_holds(test: ReplyTest, reply: RawReply, data: dict[str, Any] | None) -> bool:
    if test.header is not None:
        value: Any = reply.headers.get(test.header.lower())
    elif test.body is not None:
        value = body_text(reply) if body_kind(reply, data) == test.body else None
    else:
        value = value_at(data, test.path)
    return value is not None and test.accepts(value)
