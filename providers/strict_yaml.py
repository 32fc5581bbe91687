"""YAML as definitions are written in: plain data, each key once, no aliases, nothing huge.

An alias could make a file of a hundred bytes into gigabytes; a key written twice would let the
second win silently.
"""

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

MOST_CHARACTERS = 64 * 1024


class NotYaml(ValueError):
    """Why a text was not read. It names positions and kinds, and shows little of the text."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses anchors, aliases, and a key written twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no types
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ComposerError(None, None, "anchors and aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key must be a word", key)
            if key.value in seen:
                raise _refused(f"{key.value[:64]!r} is there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refused(why: str, node: yaml.Node) -> ConstructorError:
    return ConstructorError(None, None, why, node.start_mark)


def read_yaml(text: str) -> Any:
    """The data of one document. Raises NotYaml."""
    if len(text) > MOST_CHARACTERS:
        raise NotYaml(f"has {len(text)} characters; {MOST_CHARACTERS} are read at most")
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader underneath
    except yaml.YAMLError as error:
        raise NotYaml(f"is not YAML: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise NotYaml("is nested too deeply") from None
    except ValueError:  # a number or a date that Python can't hold
        raise NotYaml("has a number or a date that can't be read") from None
