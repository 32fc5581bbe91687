"""Text from outside. Pure."""


def is_whole(text: str) -> bool:
    """Every column and every answer of ours can hold it. JSON may name half a character, and NUL."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
