"""Values that a folder names and doesn't hold: a variable of the environment, or a file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from evergrant.cli.arguments import read_secret, read_text
from evergrant.cli.configuration.folder import Described
from evergrant.cli.configuration.kinds import BY_NAME
from evergrant.errors import BadRequest

_HOW = "{env: NAME} or {file: PATH}"


@dataclass(frozen=True, slots=True)
class Values:
    """The members of an object as they are sent. `secrets` are those that came from elsewhere, `missing`
    those whose variable isn't set: they are left out."""

    sent: Mapping[str, Any]
    secrets: frozenset[str]
    missing: Mapping[str, str]


class _Unset(Exception):
    """The variable of a value isn't set."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def values_of(described: Described) -> Values:
    """Read what the object's members name. Raises BadRequest."""
    sent: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, value in described.fields.items():
        try:
            sent[name] = _read(described, (name,), value)
        except _Unset as unset:
            missing[name] = unset.name
    kind = BY_NAME[described.key.kind]
    read = {path.partition(".")[0] for path in kind.secrets}
    read |= {name for name in kind.texts if _is_reference(described.fields.get(name))}
    return Values(sent, frozenset(read & described.fields.keys()), missing)


def _read(described: Described, path: tuple[str | int, ...], value: Any) -> Any:
    """A value with what it names. Raises _Unset, BadRequest."""
    kind = BY_NAME[described.key.kind]
    dotted = ".".join(str(part) for part in path)
    of_any = ".".join((*(str(part) for part in path[:-1]), "*"))
    is_secret = dotted in kind.secrets or of_any in kind.secrets
    if is_secret or dotted in kind.texts:
        if value is not None and _is_reference(value):
            return _elsewhere(described, path, cast(dict[str, Any], value), is_secret=is_secret)
        if is_secret or (isinstance(value, str) and "?" in value and path == ("url",)):
            value_kind = "a secret" if is_secret else "the query of a URL, which may be a secret,"
            raise described.source.invalid(f"{value_kind} never stands in the folder: write {_HOW}", *path)
        return value
    if isinstance(value, dict):
        members = cast(dict[str, Any], value)
        return {name: _read(described, (*path, name), member) for name, member in members.items()}
    return value


def _is_reference(value: object) -> bool:
    members = cast(dict[str, object], value) if isinstance(value, dict) else {}
    return len(members) == 1 and members.keys() <= {"env", "file"}


def _elsewhere(
    described: Described, path: Sequence[str | int], reference: Mapping[str, Any], *, is_secret: bool
) -> str:
    (how, name), source = next(iter(reference.items())), described.source
    if not isinstance(name, str) or not name:
        raise source.invalid(f"write {_HOW}", *path)
    if how == "env":
        if not (value := os.environ.get(name)):
            raise _Unset(name)
        return value
    file = source.file.parent / Path(name).expanduser()
    try:
        return read_secret(file) if is_secret and path[-1] == "client_secret" else read_text(file).strip()
    except BadRequest as error:
        raise source.invalid(error.detail, *path) from None
