"""Where a vector and its definition differ, in one line each that names file, field and repair."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from evergrant_server.core.errors import Failure
from evergrant_server.core.text import json_type

Read = TypeVar("Read")
_ABSENT = object()
_REPAIR = "Mend the one that the provider's pages contradict."


def assert_agrees(where: str, said: Any, done: Any, *, names: dict[str, str] | None = None) -> None:
    """Fails with a line for each difference; `where` is `vectors/acme.yaml: exchange`.

    `names` has the placeholders of secrets: a line shows what an author has written.
    """
    lines = [
        _line(f"{where}{field}", _shown(ours, names), _shown(theirs, names))
        for field, ours, theirs in _differences("", said, done)
    ]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def read_or_fail(where: str, read: Callable[[], Read]) -> Read:
    """What is read from a vector's reply, which is no refusal."""
    try:
        return read()
    except Failure as failure:
        read_as = f"{failure.code.value} ({failure.detail})"
        pytest.fail(_line(where, "a success", read_as), pytrace=False)


def failure_or_fail(where: str, read: Callable[[], Any]) -> Failure:
    """The failure that a vector's refusal is read as."""
    try:
        read()
    except Failure as failure:
        return failure
    pytest.fail(_line(where, "a refusal", "tokens"), pytrace=False)


def _line(where: str, ours: str, theirs: str) -> str:
    return f"{where}: the vector has {ours}, the definition {theirs}. {_REPAIR}"


def _differences(field: str, said: Any, done: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(said, dict) and isinstance(done, dict):
        for name in {**said, **done}:
            yield from _differences(f"{field}.{name}", said.get(name, _ABSENT), done.get(name, _ABSENT))
    elif said != done or json_type(said) != json_type(done):  # in Python, true is 1
        yield field, said, done


def _shown(value: Any, names: dict[str, str] | None) -> str:
    if value is _ABSENT:
        return "nothing"
    text = "null" if value is None else str(value)
    for name, secret in (names or {}).items():
        text = text.replace(secret, name)
    return text
