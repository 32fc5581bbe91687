"""YAML as definitions are written in: plain data, each key once, no aliases, nothing huge.

An alias could make a file of a hundred bytes into gigabytes; a key written twice would let the
second win silently.
"""

from typing import Any

import yaml

MAX_CHARACTERS = 64 * 1024
_MAX_DEPTH = 32

# libyaml's, where PyYAML was built with it: the catalogue is read at every start
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class InvalidYaml(ValueError):
    """Why a text was not read. It names positions and kinds, and shows little of the text."""


class _StrictLoader(_Loader):  # type: ignore[misc]  # one of two, both SafeLoaders
    """SafeLoader that refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InvalidYaml(f"a key must be a word (line {key.start_mark.line + 1})")
            if key.value in seen:
                raise InvalidYaml(f"{key.value[:64]!r} is there twice (line {key.start_mark.line + 1})")
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def parse_yaml(text: str) -> Any:
    """The data of one document. Raises NotYaml."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidYaml(f"has {len(text)} characters; {MAX_CHARACTERS} are read at most")
    try:
        _refuse_bombs(text)
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader underneath
    except yaml.YAMLError as error:
        raise InvalidYaml(f"is not YAML: {_why(text, error)}") from None
    except ValueError as error:
        if isinstance(error, InvalidYaml):
            raise
        raise InvalidYaml("has a number or a date that can't be read") from None


def _why(text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    lines = text.split("\n")
    if mark is not None and mark.line < len(lines) and lines[mark.line].startswith("\t", mark.column):
        return f"it has a tab, where YAML wants spaces (line {mark.line + 1})"
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())[:300]


def _refuse_bombs(text: str) -> None:
    """Look at the events alone, before anything is built from them."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            line = event.start_mark.line + 1
            raise InvalidYaml(f"has anchors or aliases, which are not read: write it out (line {line})")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise InvalidYaml("is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
