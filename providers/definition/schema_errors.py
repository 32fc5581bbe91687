"""How a provider says that a request failed, and what its errors mean."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from providers.definition.patterns import matches
from providers.definition.schema_base import (
    AnchoredPattern,
    HeaderName,
    JsonPath,
    OneGroupPattern,
    SpecPart,
)

ErrorMeaning = Literal["dead_token", "subject", "client", "passing", "rate_limit"]
"""Whose turn it is: the subject's, whose token or code is over (`dead_token`) or who has to do something else
first, themselves or by their administrator (`subject`); the integration's admin's (`client`); or time's."""

RequestKind = Literal["refresh", "exchange", "device", "revocation"]
"""What was requested: `exchange` is that of a code, and every other request for first tokens."""

BodyKind = Literal["text", "html", "empty"]
_MOST_MATCHED = 20_000  # characters


class _Test(SpecPart):
    """What a part of a reply is compared with, by at most one of these.

    Texts are compared without case, final punctuation and the number of spaces, since providers change
    those between two replies; numbers and booleans exactly.
    """

    not_in: tuple[Any, ...] | None = None
    values: tuple[Any, ...] | None = None
    pattern: AnchoredPattern | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        if sum(test is not None for test in (self.not_in, self.values, self.pattern)) > 1:
            raise ValueError("has more than one of not_in, values and pattern")
        return self

    def accepts(self, value: Any) -> bool:
        """Whether a value that is present passes the test: with `not_in` another value than these, with
        `values` one of these, with `pattern` a text that matches, without a test any value."""
        if self.not_in is not None:
            return not is_one_of(value, self.not_in)
        if self.pattern is not None:
            return matches(self.pattern, text_of(value)[:_MOST_MATCHED])
        return self.values is None or is_one_of(value, self.values)


class FieldTest(_Test):
    """A condition on one field of a reply: it is present and passes the test."""

    path: JsonPath


class ReplyTest(_Test):
    """A condition on one part of a reply: a field (`path`), a `header`, or the `body` as a whole.

    A body is `html`, `empty`, or `text` (any other that is no JSON object). Its white space counts as one
    space, so that a pattern needs no flag for lines.
    """

    path: JsonPath | None = None
    header: HeaderName | None = None
    body: BodyKind | None = None

    @property
    def subject(self) -> tuple[str | None, str | None, str | None]:
        """The part of the reply."""
        return self.path, self.header and self.header.lower(), self.body

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        count = sum(part is not None for part in self.subject)
        if count != 1 and not (count == 0 and isinstance(self, ErrorRule) and self.status):
            raise ValueError("needs exactly one of path, header and body")
        return self


class ErrorRule(ReplyTest):
    """A condition that makes a reply an error, with any HTTP status unless `status` lists some.

    The first rule whose conditions all hold names the error. `when` has further conditions, one or a list;
    `at` the requests whose replies the rule is about. `means` says what the error is, which its name may not.
    """

    status: tuple[int, ...] = ()
    when: Annotated[
        tuple[ReplyTest, ...],
        BeforeValidator(
            lambda value: [value] if isinstance(value, dict) else value,
            json_schema_input_type=ReplyTest | tuple[ReplyTest, ...],
        ),
    ] = ()
    at: tuple[RequestKind, ...] = ()  # none: all
    code_path: JsonPath | None = None  # of the error's name; None: `path`
    means: ErrorMeaning | None = None

    def tests(self) -> tuple[ReplyTest, ...]:
        """Every condition on a part of the reply."""
        return self.when if self.subject == (None, None, None) else (self, *self.when)

    def applies_at(self, request: RequestKind | None) -> bool:
        return not self.at or request is None or request in self.at


def is_one_of(value: Any, values: Iterable[Any]) -> bool:
    """Membership: of texts as `_Test` compares them, of other values by JSON equality (true is not 1)."""
    if isinstance(value, str):
        plain = plain_text(value)
        return any(isinstance(known, str) and plain_text(known) == plain for known in values)
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values)


def plain_text(text: str) -> str:
    """A text without what providers vary: case, spaces around and between words, final punctuation."""
    return " ".join(text.casefold().split()).rstrip(".,;:!? ")


def text_of(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


class RateLimitReset(SpecPart):
    """A header that says when a limit ends: in so many seconds, or at a Unix time."""

    header: HeaderName
    format: Literal["seconds", "epoch_s"] = "seconds"


class BodyWait(SpecPart):
    """Where the body of a busy provider's reply says how long to wait: a number at `path`, or the one group
    of `pattern` in the text there, without a path in the whole body."""

    path: JsonPath | None = None
    pattern: OneGroupPattern | None = None
    unit: Literal["ms", "s", "min"] = "s"

    @model_validator(mode="after")
    def _some_place(self) -> Self:
        if self.path is None and self.pattern is None:
            raise ValueError("needs path or pattern")
        return self


class ErrorPart(SpecPart):
    """Replies that mean success, and what the names of errors mean."""

    # a definition of the catalogue whose rules and codes come after this one's: siblings share one list
    extends: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    success_statuses: tuple[int, ...] = (200,)
    status_field: JsonPath | None = None  # any value but `ok_values` is an error
    ok_values: tuple[Any, ...] = ()
    error_rules: tuple[ErrorRule, ...] = ()  # come before `error`, which is read where no rule holds
    terminal_error_codes: tuple[str, ...] = ()  # end the grant, with a 5xx too
    client_error_codes: tuple[str, ...] = ()  # our client is refused: the integration's admin repairs it
    rate_limit_error_codes: tuple[str, ...] = ()
    retryable_error_codes: tuple[str, ...] = ()
    rate_limit_reset: RateLimitReset | None = None  # of a rate-limited reply without Retry-After
    wait_in_body: BodyWait | None = None  # of such a reply, or one of an error that passes

    def list_of(self, name: str | None) -> str | None:
        """The field of this definition that lists an error of this name."""
        return next((field for field in CODE_LISTS if name and is_one_of(name, getattr(self, field))), None)

    def with_errors_of(self, extended: "ErrorPart") -> Self:
        """This definition with the errors of another one behind its own: what both name is its own."""
        rules = list(self.error_rules)
        for inherited in extended.error_rules:
            rule: ErrorRule | None = inherited
            for earlier in self.error_rules:
                rule = None if rule is None else without_covered(rule, earlier)
            rules += [] if rule is None else [rule]
        changes: dict[str, Any] = {"error_rules": tuple(rules)}
        for field in CODE_LISTS:
            further = (name for name in getattr(extended, field) if self.list_of(name) is None)
            changes[field] = (*getattr(self, field), *further)
        for name in ("success_statuses", "status_field", "ok_values", "rate_limit_reset", "wait_in_body"):
            if name not in self.model_fields_set:
                changes[name] = getattr(extended, name)
        return self.__replace__(**changes)

    @model_validator(mode="after")
    def _field_and_values(self) -> Self:
        if (self.status_field is None) != (not self.ok_values):
            raise ValueError("status_field and ok_values go together")
        return self

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        before: dict[str, str] = {}
        for field in CODE_LISTS:
            for name in getattr(self, field):
                if before.setdefault(plain_text(name), field) != field:
                    raise ValueError(f"{field} has {name}, as {before[plain_text(name)]} has")
        return self

    @model_validator(mode="after")
    def _every_rule_can_hold(self) -> Self:
        for later, rule in enumerate(self.error_rules):
            for first, earlier in enumerate(self.error_rules[:later]):
                if (kept := without_covered(rule, earlier)) == rule:
                    continue
                left = () if kept is None else kept.values or ()
                values = ", ".join(text_of(value) for value in rule.values or () if value not in left)
                part = "any reply" if kept is None else values[:200]
                raise ValueError(
                    f"error_rules.{later} never holds for {part}: error_rules.{first} comes first and covers "
                    f"it ({earlier.means or 'no meaning'} there, {rule.means or 'no meaning'} here)"
                )
        for index, rule in enumerate(self.error_rules):
            clash = next(self._other_meanings(rule), None)
            if clash is not None:
                raise ValueError(
                    f"error_rules.{index} says that {clash[1]} means {rule.means}, {clash[0]} another thing"
                )
        return self

    def _other_meanings(self, rule: "ErrorRule") -> Iterator[tuple[str, str]]:
        """Names that a rule without further conditions gives another meaning than a list of codes does."""
        if rule.means and rule.path and not (rule.when or rule.at or rule.status or rule.code_path):
            for name in rule.values or ():
                field = self.list_of(text_of(name))
                if field is not None and CODE_LISTS[field] != rule.means:
                    yield field, str(name)


CODE_LISTS: dict[str, ErrorMeaning] = {
    "terminal_error_codes": "dead_token",
    "client_error_codes": "client",
    "rate_limit_error_codes": "rate_limit",
    "retryable_error_codes": "passing",
}
"""The lists of errors' names, and what each says about them."""


def without_covered(rule: ErrorRule, earlier: ErrorRule) -> ErrorRule | None:
    """A rule without the values for which an earlier one holds first; None where that is all of it."""
    if _covers(earlier, rule):
        return None
    if rule.values is None:
        return rule
    kept = tuple(value for value in rule.values if not _covers(earlier, rule.__replace__(values=(value,))))
    return None if not kept else rule if len(kept) == len(rule.values) else rule.__replace__(values=kept)


def _covers(earlier: ErrorRule, later: ErrorRule) -> bool:
    """Whether the earlier rule certainly holds wherever the later one does."""
    if earlier.at and not (later.at and set(later.at) <= set(earlier.at)):
        return False
    if earlier.status and not (later.status and set(later.status) <= set(earlier.status)):
        return False
    return all(any(_implied(test, by) for by in later.tests()) for test in earlier.tests())


def _implied(test: ReplyTest, by: ReplyTest) -> bool:
    """Whether one condition holds wherever another one does, as far as that can be told."""
    if test.subject != by.subject:
        return False
    if by.values is not None:
        return all(map(test.accepts, by.values))
    if test.not_in is not None:
        return by.not_in is not None and all(is_one_of(value, by.not_in) for value in test.not_in)
    return test.values is None and test.pattern in (None, by.pattern)
