"""Client secrets: read from files, never from the command line, which other users of the machine can see."""

import re
from pathlib import Path

from evergrant.cli.output import argument_error, read_text

_NAMED = re.compile(r"\w*secret\w*\s*[=:]", re.IGNORECASE)


def read_secret(file: Path) -> str:
    """The secret in a file. Raises BadRequest for one that holds more, such as a line of settings."""
    text = read_text(file).strip()
    more = (
        "its name" if _NAMED.match(text)
        else "quotes" if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]
        else "JSON" if text.startswith("{")
        else "several words or lines" if len(text.split()) > 1
        else None
    )  # fmt: skip
    if more is not None:
        raise argument_error(f"{file} holds {more} beside the secret: write the secret alone into it")
    return text
