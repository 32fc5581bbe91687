"""How a provider says that a request failed, and what its errors mean."""

from typing import Any, Literal, Self

from pydantic import model_validator

from providers.definition.schema_base import AnchoredPattern, HeaderName, JsonPath, SpecPart


class FieldTest(SpecPart):
    """A condition on one field of a reply, compared as JSON.

    It holds when the field is present and meets the one test: with `not_in` it has another value,
    with `values` one of these, with `pattern` a text that matches, without a test any value.
    """

    path: JsonPath
    not_in: tuple[Any, ...] | None = None
    values: tuple[Any, ...] | None = None
    pattern: AnchoredPattern | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        if sum(test is not None for test in (self.not_in, self.values, self.pattern)) > 1:
            raise ValueError("has more than one of not_in, values and pattern")
        return self


ErrorMeaning = Literal["dead_token", "client", "passing", "rate_limit"]


class ErrorRule(FieldTest):
    """A field that makes a reply an error, with any HTTP status. The first rule that holds names it.

    `when` is a second condition. `means` says what the error is, which its name may not.
    """

    when: FieldTest | None = None
    code_path: JsonPath | None = None  # of the error's name; None: `path`
    means: ErrorMeaning | None = None


class RateLimitReset(SpecPart):
    """A header that says when a limit ends: in so many seconds, or at a Unix time."""

    header: HeaderName
    format: Literal["seconds", "epoch_s"] = "seconds"


class ErrorPart(SpecPart):
    """Replies that mean success, and what the names of errors mean."""

    success_statuses: tuple[int, ...] = (200,)
    status_field: JsonPath | None = None  # any value but `ok_values` is an error
    ok_values: tuple[Any, ...] = ()
    error_rules: tuple[ErrorRule, ...] = ()  # come before `error`, which is read where no rule holds
    terminal_error_codes: tuple[str, ...] = ()  # end the grant, with a 5xx too
    client_error_codes: tuple[str, ...] = ()  # our client is refused: the integration's admin repairs it
    rate_limit_error_codes: tuple[str, ...] = ()
    retryable_error_codes: tuple[str, ...] = ()
    rate_limit_reset: RateLimitReset | None = None  # of a rate-limited reply without Retry-After

    def meaning_of(self, name: str | None) -> ErrorMeaning | None:
        """What this definition says about an error of this name."""
        lists: tuple[tuple[ErrorMeaning, tuple[str, ...]], ...] = (
            ("dead_token", self.terminal_error_codes),
            ("client", self.client_error_codes),
            ("rate_limit", self.rate_limit_error_codes),
            ("passing", self.retryable_error_codes),
        )
        return next((meaning for meaning, names in lists if name in names), None)

    @model_validator(mode="after")
    def _field_and_values(self) -> Self:
        if (self.status_field is None) != (not self.ok_values):
            raise ValueError("status_field and ok_values go together")
        return self

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        before: dict[str, str] = {}
        for field in ("terminal", "client", "rate_limit", "retryable"):
            for name in getattr(self, f"{field}_error_codes"):
                if before.setdefault(name, field) != field:
                    raise ValueError(f"{field}_error_codes has {name}, as {before[name]}_error_codes has")
        return self
