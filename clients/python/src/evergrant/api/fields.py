"""Typed reading of JSON objects: a missing or mistyped member raises ProtocolError.

Error messages name the member, never its value: the value may be a token.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from evergrant.errors import ProtocolError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Model = TypeVar("Model", bound="DataclassInstance")
Kind = TypeVar("Kind")
_KINDS: Mapping[Any, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
    Mapping: "an object",
}
_JSON: Mapping[Any, Any] = {float: int | float, tuple: list, Mapping: dict}


class Fields:
    """One JSON object; errors call it `name`."""

    def __init__(self, members: Mapping[str, object], name: str) -> None:
        self.members = members
        self._name = name

    @classmethod
    def of_json(cls, body: bytes, name: str) -> "Fields":
        try:
            value: object = json.loads(body)
        except ValueError:
            # The parser's message can quote the body, so it is not chained.
            raise ProtocolError(f"the {name} is not JSON") from None
        return cls.of(value, name)

    @classmethod
    def of(cls, value: object, name: str) -> "Fields":
        if not isinstance(value, dict):
            raise ProtocolError(f"the {name} is not a JSON object")
        return cls(cast(dict[str, object], value), name)

    def build(self, model: type[Model], **ready: object) -> Model:
        """A dataclass from the members that have its fields' names, each read by the field's type.

        `ready` holds fields that are read another way. A member that is absent or null keeps the field's
        default, where the field has one.
        """
        values: dict[str, Any] = dict(ready)
        for member, kind, required in _fields(model):
            if member not in values and (required or self.members.get(member) is not None):
                values[member] = self.read(member, kind)
        return model(**values)

    def read(self, member: str, kind: type[Kind]) -> Kind:
        """A member as a type: text, number, time, an enum, a dataclass, several of them, or one or None."""
        return cast(Kind, _read(self.members.get(member), kind, member, self._name))

    def text(self, member: str) -> str:
        return self.read(member, str)

    def text_or_none(self, member: str) -> str | None:
        return None if self.members.get(member) is None else self.text(member)

    def time_or_none(self, member: str) -> datetime | None:
        return None if self.members.get(member) is None else self.read(member, datetime)

    def array(self, member: str) -> list[object]:
        return list(self.read(member, tuple[object, ...]))


@cache
def _fields(model: "type[DataclassInstance]") -> tuple[tuple[str, Any, bool], ...]:
    """The names of a model's fields, their types, and whether they are without a default."""
    hints = get_type_hints(model)
    return tuple(
        (field.name, hints[field.name], field.default is field.default_factory)  # both are MISSING
        for field in dataclasses.fields(model)
    )


def _read(value: object, kind: Any, member: str, name: str) -> object:
    origin = get_origin(kind) or kind
    if origin is UnionType:  # X | None
        return None if value is None else _read(value, get_args(kind)[0], member, name)
    if origin is object:
        return value
    if origin is datetime:
        return _time(_read(value, str, member, name), member, name)
    if origin in _KINDS:
        wrong_bool = isinstance(value, bool) and origin is not bool
        if wrong_bool or not isinstance(value, _JSON.get(origin, origin)):
            raise ProtocolError(f"`{member}` of the {name} is not {_KINDS[origin]}")
        if origin is tuple:
            items = cast(list[object], value)
            return tuple(_read(item, get_args(kind)[0], member, name) for item in items)
        return value
    if issubclass(origin, StrEnum):
        text = str(_read(value, str, member, name))
        if text not in set(origin):
            raise ProtocolError(f"this client doesn't know the {name}'s {member} {text[:40]!r}")
        return origin(text)
    return Fields.of(value, member).build(origin)


def _time(text: object, member: str, name: str) -> datetime:
    """An RFC 3339 time in UTC. A time without an offset is refused."""
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise ProtocolError(f"`{member}` of the {name} is not a time with its offset (RFC 3339)")
    return at.astimezone(UTC)


def words(model: type) -> str:
    """The name of a model for people: `AuditRecord` is an audit record."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", model.__name__).lower()
