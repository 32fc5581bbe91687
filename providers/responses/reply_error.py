"""Finds the error of a reply: its name, and what the definition's rules say about it. Pure."""

from dataclasses import dataclass
from typing import Any

from evergrant_server.core.provider_words import ReplyFailure
from providers.definition.patterns import matches
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import ErrorMeaning, FieldTest
from providers.responses.raw_reply import MAX_VALUE_LENGTH, value_at


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
