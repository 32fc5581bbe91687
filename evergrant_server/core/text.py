"""Which text from outside can be stored. Pure."""

from typing import cast


def is_storable_text(text: str) -> bool:
    """No NUL and no lone surrogate, which JSON allows and the store doesn't."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def is_storable(value: object) -> bool:
    """The same of every text in what JSON can say, names included."""
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
