"""Typed reading of JSON objects: a missing or mistyped member raises ProtocolError.

Error messages name the member, never its value: the value may be a token.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import UnionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from evergrant.errors import ProtocolError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Model = TypeVar("Model", bound="DataclassInstance")


class Fields:
    """One JSON object. `what` names it in errors; each method reads one member as one type."""

    def __init__(self, members: Mapping[str, object], what: str) -> None:
        self._members = members
        self._what = what

    @classmethod
    def of_json(cls, body: bytes, what: str) -> "Fields":
        try:
            value: object = json.loads(body)
        except ValueError:
            # The parser's message can quote the body, so it is not chained.
            raise ProtocolError(f"the {what} is not JSON") from None
        return cls.of(value, what)

    @classmethod
    def of(cls, value: object, what: str) -> "Fields":
        if not isinstance(value, dict):
            raise ProtocolError(f"the {what} is not a JSON object")
        return cls(cast(dict[str, object], value), what)

    @property
    def members(self) -> Mapping[str, object]:
        return self._members

    def has(self, name: str) -> bool:
        """Whether the member is present and not null."""
        return self._members.get(name) is not None

    def build(self, model: type[Model], **given: object) -> Model:
        """A dataclass from the members that have its fields' names, each read by the field's type.

        `given` holds fields that are read another way. A member that is absent or null keeps the
        field's default, where the field has one.
        """
        hints = get_type_hints(model)
        values: dict[str, Any] = dict(given)
        for field in dataclasses.fields(model):
            required = field.default is field.default_factory  # both are MISSING
            if field.name not in values and (self.has(field.name) or required):
                values[field.name] = self._read(field.name, hints[field.name])
        return model(**values)

    def _read(self, name: str, hint: Any) -> object:
        """A member by its field's type: a type of `_READERS`, an optional, an enum or a nested dataclass."""
        if hint in _READERS:
            return _READERS[hint](self, name)
        if get_origin(hint) is UnionType:  # X | None
            return self._read(name, get_args(hint)[0]) if self.has(name) else None
        if get_origin(hint) is tuple:
            return tuple(Fields.of(item, name).build(get_args(hint)[0]) for item in self.array(name))
        if issubclass(hint, StrEnum):
            value = self.text(name)
            if value not in set(hint):
                raise ProtocolError(f"this client doesn't know the {self._what}'s {name} {value[:40]!r}")
            return hint(value)
        return Fields(self.mapping(name), name).build(hint)

    def text(self, name: str) -> str:
        value = self._members.get(name)
        return value if isinstance(value, str) else self._wrong(name, "text")

    def text_or_none(self, name: str) -> str | None:
        return self.text(name) if self.has(name) else None

    def integer(self, name: str) -> int:
        value = self._members.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        return self._wrong(name, "an integer")

    def number(self, name: str) -> float:
        value = self._members.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        return self._wrong(name, "a number")

    def boolean(self, name: str) -> bool:
        value = self._members.get(name)
        return value if isinstance(value, bool) else self._wrong(name, "true or false")

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.array(name)
        if not all(isinstance(value, str) for value in values):
            return self._wrong(name, "a list of text")
        return tuple(cast(list[str], values))

    def array(self, name: str) -> list[object]:
        value = self._members.get(name)
        return cast(list[object], value) if isinstance(value, list) else self._wrong(name, "a list")

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._members.get(name)
        return cast(dict[str, Any], value) if isinstance(value, dict) else self._wrong(name, "an object")

    def time(self, name: str) -> datetime:
        """An RFC 3339 time in UTC. A time without an offset is refused."""
        try:
            at = datetime.fromisoformat(self.text(name))
        except ValueError:
            return self._wrong(name, "an RFC 3339 time")
        return at.astimezone(UTC) if at.tzinfo else self._wrong(name, "a time with its offset")

    def time_or_none(self, name: str) -> datetime | None:
        return self.time(name) if self.has(name) else None

    def _wrong(self, name: str, expected: str) -> NoReturn:
        raise ProtocolError(f"`{name}` of the {self._what} is not {expected}")


_READERS: Mapping[object, Callable[[Fields, str], object]] = {
    str: Fields.text,
    int: Fields.integer,
    float: Fields.number,
    bool: Fields.boolean,
    datetime: Fields.time,
    tuple[str, ...]: Fields.texts,
    Mapping[str, Any]: Fields.mapping,
}
