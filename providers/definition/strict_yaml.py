"""Reads YAML strictly: plain data, each key once, no aliases, a bounded size.

An alias can expand a file of a hundred bytes to gigabytes, and of a repeated key the first value
would be lost silently.
"""

from typing import Any

import yaml

MAX_CHARACTERS = 64 * 1024
_MAX_DEPTH = 32

# libyaml's loader is faster, and the catalogue is read at every start
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class InvalidYaml(ValueError):
    """Why a text was refused. The message names positions and kinds, and quotes little of the text."""


class _StrictLoader(_Loader):  # type: ignore[misc]  # either loader is a SafeLoader
    """SafeLoader that refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InvalidYaml(f"a key must be a scalar (line {key.start_mark.line + 1})")
            if key.value in seen:
                raise InvalidYaml(f"{key.value[:64]!r} is repeated (line {key.start_mark.line + 1})")
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def parse_yaml(text: str) -> Any:
    """The data of one document. Raises NotYaml."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidYaml(f"has {len(text)} characters; the limit is {MAX_CHARACTERS}")
    try:
        _refuse_bombs(text)
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise InvalidYaml(f"is not YAML: {_why(text, error)}") from None
    except ValueError as error:
        if isinstance(error, InvalidYaml):
            raise
        raise InvalidYaml("has a number or a date that is invalid") from None


def _why(text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    lines = text.split("\n")
    if mark is not None and mark.line < len(lines) and lines[mark.line].startswith("\t", mark.column):
        return f"it has a tab where YAML needs spaces (line {mark.line + 1})"
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())[:300]


def _refuse_bombs(text: str) -> None:
    """Check the parser's events before any object is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            line = event.start_mark.line + 1
            raise InvalidYaml(f"has anchors or aliases, which are not supported (line {line})")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise InvalidYaml("is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
