"""Typed reading of JSON objects: a member that is missing or of another type is a ProtocolError.

Messages name the member, never its value: the value may be a token.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NoReturn, cast

from evergrant.errors import ProtocolError


class Fields:
    """One JSON object. Each method reads one member as one type."""

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

    def text(self, name: str) -> str:
        value = self._members.get(name)
        return value if isinstance(value, str) else self._wrong(name, "text")

    def text_or_none(self, name: str) -> str | None:
        return None if self._members.get(name) is None else self.text(name)

    def integer(self, name: str) -> int:
        value = self._members.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        return self._wrong(name, "an integer")

    def integer_or_none(self, name: str) -> int | None:
        return None if self._members.get(name) is None else self.integer(name)

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

    def mapping(self, name: str) -> Mapping[str, object]:
        value = self._members.get(name)
        return cast(dict[str, object], value) if isinstance(value, dict) else self._wrong(name, "an object")

    def time(self, name: str) -> datetime:
        """An RFC 3339 time; one without an offset is refused, not guessed."""
        try:
            at = datetime.fromisoformat(self.text(name))
        except ValueError:
            return self._wrong(name, "an RFC 3339 time")
        return at.astimezone(UTC) if at.tzinfo else self._wrong(name, "a time with its offset")

    def time_or_none(self, name: str) -> datetime | None:
        return None if self._members.get(name) is None else self.time(name)

    def _wrong(self, name: str, expected: str) -> NoReturn:
        raise ProtocolError(f"`{name}` of the {self._what} is not {expected}")
