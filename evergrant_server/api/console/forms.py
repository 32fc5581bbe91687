"""A form of the console: what was typed into it, and what is wrong with that, field by field.

The macros of `console/forms.html` show it. A field's name is its member's in the body of the API's route
(`login.integration`), so that each refusal of the route has its field.
"""

import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import is_slug
from evergrant_server.problems import field_errors, invalid_request
from evergrant_server.telemetry.alarms import report_broken_authority

# what isn't about the form's content is a page of its own
_ELSEWHERE = {
    *(ErrorCode.NOT_FOUND, ErrorCode.NOT_PERMITTED, ErrorCode.UNAUTHENTICATED, ErrorCode.AUTHORITY_BROKEN),
    *(ErrorCode.CALLBACK_INVALID, ErrorCode.CROSS_SITE_REQUEST, ErrorCode.RATE_LIMITED, ErrorCode.INTERNAL),
}
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")
_ONCE_BYTES, _SHORTEST_ONCE, _LONGEST_ONCE = 32, 20, 64


@dataclass(frozen=True)
class Form:
    """Values and problems by field. `failure` is about the whole form, or about a field that it hasn't."""

    values: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: Mapping[str, str] = field(default_factory=dict[str, str])
    failure: Failure | None = None
    status: int = 200

    @classmethod
    def refused(
        cls,
        values: Mapping[str, str],
        refusal: Failure | ValidationError,
        names: Collection[str],
        aliases: Mapping[str, str] | None = None,
    ) -> "Form":
        """What is shown again after a refusal, with its problems at the fields of these names. `aliases` are
        members of the body that stand in another field.

        Raises a Failure that isn't about the form's content.
        """
        places = {name: name for name in names} | dict(aliases or {})
        if isinstance(refusal, ValidationError):
            return _of_errors(values, field_errors(refusal), places)
        report_broken_authority(refusal)
        if refusal.code in _ELSEWHERE:
            raise refusal
        name = _field_of(refusal.context.get("field", ""), places)
        problems = {} if name is None else {name: _in_words(refusal, name)}
        return cls(values, problems, None if problems else refusal, refusal.rule.status)

    @property
    def sent(self) -> bool:
        """Whether somebody has sent it: a box that it lacks was left empty."""
        return self.failure is not None or bool(self.problems)

    @property
    def first(self) -> str | None:
        """The field that gets the focus: the first with a problem."""
        return next(iter(self.problems), None)


def _of_errors(values: Mapping[str, str], errors: list[dict[str, str]], places: Mapping[str, str]) -> Form:
    """Each problem at its field; the first that has none is the form's."""
    problems: dict[str, str] = {}
    failure: Failure | None = None
    for error in errors:
        name = _field_of(error["field"], places)
        if name is not None:
            problems.setdefault(name, error["problem"])
        elif failure is None:
            failure = invalid_request(error["field"], f"{error['field']}: {error['problem']}")
    return Form(values, problems, failure, invalid_request("", "").rule.status)


def _field_of(member: str, places: Mapping[str, str]) -> str | None:
    """The form's field for a member of the body: `scopes` for `scopes.3`."""
    while member and member not in places:
        member = member.rpartition(".")[0]
    return places.get(member)


def _in_words(refusal: Failure, name: str) -> str:
    """What is wrong with the field, and the repair where it is an exact one. A provider's parameter is given
    in its own field, whatever the repair says of a command."""
    repair = "" if name.startswith("params.") else refusal.context.get("repair", "")
    detail = refusal.detail.removeprefix(f"{name}: ")
    return f"{detail if detail.endswith(('.', '?')) or not repair else f'{detail}.'} {repair}".strip()


def number_of(fields: Mapping[str, str], name: str) -> float | None:
    """The field's number; None for an empty field. Raises Failure INVALID_REQUEST."""
    text = fields.get(name, "")
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise invalid_request(name, "Use a number, such as 30.")
    return float(text)


def slug_of(fields: Mapping[str, str], name: str) -> str:
    """The field's name of a new thing. Raises Failure INVALID_REQUEST."""
    text = fields.get(name, "")
    if not is_slug(text):
        why = "Use up to 63 lower-case letters, digits and hyphens, such as crm-sync."
        raise invalid_request(name, why)
    return text


def require_typed(fields: Mapping[str, str], name: str, kind: str) -> None:
    """Raise Failure INVALID_REQUEST unless the form repeats the name of what it would end."""
    if fields.get("confirm") != name:
        raise invalid_request("confirm", f"Type the {kind}'s name, {name}, to go on.")


def new_once() -> str:
    """The field that makes a form do its work once, however often it is sent."""
    return secrets.token_urlsafe(_ONCE_BYTES)


async def once_of(call: ApiCall, fields: Mapping[str, str], done: str) -> ApiCall:
    """The call, for a form that shows a secret once: its answer isn't given again.

    Raises Failure ALREADY_EXISTS, with the words `done`, for a form that has done its work.
    """
    once = fields.get("once", "")
    if not _SHORTEST_ONCE <= len(once) <= _LONGEST_ONCE:
        raise invalid_request("once", "The form isn't one of the console's: open it again.")
    key = f"console-{once}"
    async with call.api.store.read() as tx:
        answer = await tx.idempotency.find(call.tenant, call.caller.app.id, key)
    if answer is not None:
        raise Failure(ErrorCode.ALREADY_EXISTS, done)
    return replace(call, key=key)
