"""Which text the store and JSON can hold: no NUL, no lone surrogates; names of JSON types."""

from typing import Any, cast


def is_storable_text(text: str) -> bool:
    """True without NUL and lone surrogates."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def is_storable(value: object) -> bool:
    """True when every text of a parsed JSON value is storable, names of members included."""
    left: list[object] = [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and not is_storable_text(one):
            return False
        if isinstance(one, dict):
            members = cast("dict[object, object]", one)
            left += [*members, *members.values()]
        elif isinstance(one, list):
            left += cast("list[object]", one)
    return True


def json_type(value: Any) -> str:
    """The JSON type of a value, for messages that may not show the value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
