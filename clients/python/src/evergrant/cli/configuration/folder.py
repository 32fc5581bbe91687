"""A folder of YAML files that describes configuration: its objects, each value with its file and line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from evergrant.cli.arguments import read_text
from evergrant.cli.configuration.kinds import KINDS, OWNER, Key, Kind
from evergrant.errors import BadRequest

Path_ = tuple[str | int, ...]  # to a value within a file: names of members, and places in lists
_OWNER = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a slug of the API
_DEEPEST = 20
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class InvalidConfiguration(BadRequest):
    """A file of the folder can't be read as configuration."""

    default_code = "invalid_configuration"
    default_repair = "Correct the file."


def invalid(place: Place, where: Sequence[str | int], why: str) -> InvalidConfiguration:
    named = ".".join(str(part) for part in where)
    return InvalidConfiguration(f"{place}: {named + ': ' if named else ''}{why}")


@dataclass(frozen=True, slots=True)
class Source:
    """A part of a file: the values at a path, and the lines of all values of the file."""

    file: Path
    lines: Mapping[Path_, int]
    path: Path_ = ()

    def place(self, *within: str | int) -> Place:
        """The line of a value, or of the nearest one around it that the file has."""
        path = (*self.path, *within)
        while path and path not in self.lines:
            path = path[:-1]
        return Place(self.file, self.lines.get(path, 1))

    def at(self, *within: str | int) -> "Source":
        return Source(self.file, self.lines, (*self.path, *within))

    def invalid(self, why: str, *within: str | int) -> InvalidConfiguration:
        return invalid(self.place(*within), (*self.path, *within), why)


@dataclass(frozen=True, slots=True)
class Described:
    """An object as the folder has it: `fields` may name secrets, and hold none."""

    key: Key
    fields: Mapping[str, Any]
    source: Source


@dataclass(frozen=True, slots=True)
class Folder:
    """All that a folder describes, or one file of it. `owner` is recorded with each change; without one
    nothing is pruned."""

    objects: Mapping[Key, Described]
    owner: str | None
    is_one_file: bool = False


def read_folder(path: Path) -> Folder:
    """The objects of one file, or of all files of a folder and its folders. Raises BadRequest."""
    files = [path] if path.is_file() else sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")])
    if not files:
        why = f"{path} has no file that ends in .yaml"
        raise InvalidConfiguration(why, repair="Name a folder of configuration files with -f.")
    objects: dict[Key, Described] = {}
    owner: tuple[str, Place] | None = None
    for file in files:
        for source, sections in _documents(file):
            if OWNER in sections:
                owner = _owner(source, sections.pop(OWNER), owner)
            for described in _objects(source, sections):
                _add(objects, described)
    return Folder(objects, None if owner is None else owner[0], path.is_file())


def _owner(source: Source, value: object, before: tuple[str, Place] | None) -> tuple[str, Place]:
    if not isinstance(value, str) or not _OWNER.fullmatch(value):
        raise source.invalid("must be a name of lower-case letters and hyphens, such as platform-team", OWNER)
    if before is not None and before[0] != value:
        raise source.invalid(f"{before[1]} names {before[0]}: a folder has one owner", OWNER)
    return value, source.place(OWNER)


def _add(objects: dict[Key, Described], described: Described) -> None:
    if (before := objects.get(described.key)) is not None:
        raise described.source.invalid(f"{described.key} stands in {before.source.place()} already")
    objects[described.key] = described


def _objects(source: Source, sections: Mapping[str, Any]) -> Iterator[Described]:
    known = {kind.section: kind for kind in KINDS if kind.parent is None}
    for section, content in sections.items():
        if section not in known:
            raise source.invalid(f"there is no such section; there are {', '.join((OWNER, *known))}", section)
        yield from _of_section(source.at(section), known[section], None, content)


def _of_section(source: Source, kind: Kind, parent: str | None, content: object) -> Iterator[Described]:
    if kind.is_single:
        yield from _of_object(source, kind, Key(kind.name, parent, ""), content)
        return
    for name, fields in _mapping(source, content, f"the {kind.section}, each by its name").items():
        yield from _of_object(source.at(name), kind, Key(kind.name, parent, name), fields)


def _of_object(source: Source, kind: Kind, key: Key, content: object) -> Iterator[Described]:
    fields = dict(_mapping(source, {} if content is None else content, "the members of one object"))
    inner = {below.section: below for below in KINDS if below.parent == kind.name}
    nested = {section: fields.pop(section) for section in inner if section in fields}
    for name, value in fields.items():
        if name not in kind.fields:
            known = ", ".join((*kind.fields, *inner))
            raise source.invalid(f"there is no such member; there are {known}", name)
        if kind.fields[name].is_list and not isinstance(value, list | None):
            raise source.invalid("must be a list, such as [first, second]", name)
    for name, field in kind.fields.items():
        if field.is_required and fields.get(name) is None:
            raise source.invalid(f"{name} is missing")
    yield Described(key, fields, source)
    for section, described in nested.items():
        yield from _of_section(source.at(section), inner[section], key.name, described)


def _mapping(source: Source, content: object, meant: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise source.invalid(f"must be an object: {meant}")
    return cast(dict[str, Any], content)


def _documents(file: Path) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Each document of a file that isn't empty."""
    loader = _Loader(read_text(file))
    try:
        while loader.check_node() and (node := loader.get_node()) is not None:
            lines: dict[Path_, int] = {}
            source = Source(file, lines)
            content = _value(loader, source, node, lines, ())
            if content is not None:
                yield source, dict(_mapping(source, content, "sections, such as integrations"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or "isn't YAML"
        raise invalid(Place(file, mark.line + 1 if mark else 1), (), f"isn't YAML: {why}") from None


def _value(
    loader: "_Loader", source: Source, node: yaml.Node, lines: dict[Path_, int], path: Path_
) -> object:
    """A node as plain values. Raises InvalidConfiguration for a name that stands twice."""
    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > _DEEPEST:
        raise invalid(Place(source.file, node.start_mark.line + 1), path[:3], "is nested too deeply")
    if isinstance(node, yaml.SequenceNode):
        items: list[yaml.Node] = node.value
        return [_value(loader, source, item, lines, (*path, place)) for place, item in enumerate(items)]
    if not isinstance(node, yaml.MappingNode):
        return cast(Any, loader).construct_object(node)
    members: dict[str, object] = {}
    pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
    for named, value in pairs:
        place = Place(source.file, named.start_mark.line + 1)
        if not isinstance(named, yaml.ScalarNode):
            raise invalid(place, path, "has a name that is no text")
        name = str(named.value)
        if name in members:
            raise invalid(place, (*path, name), "stands here a second time")
        lines[*path, name] = place.line
        members[name] = _value(loader, source, value, lines, (*path, name))
    return members


class _Loader(yaml.SafeLoader):
    """YAML's safe form, in which a time is the text that stands there."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
