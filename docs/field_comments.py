"""What a model's comments say about its fields: an editor shows it where an author writes the field."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from providers.definition.schema_base import SpecPart

_FIELD = re.compile(r"    (\w+): .*?(?:  # (?P<comment>.+))?$")
_COMMENT = re.compile(r"    # (.+)$")


def describe_fields(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Adds the comments to a model's JSON Schema, and to those of the parts that it refers to."""
    parts = {part.__name__: part for part in _subclasses(SpecPart)}
    for name, described in {**schema.get("$defs", {}), model.__name__: schema}.items():
        comments = _comments(parts[name]) if name in parts else {}
        for field, text in comments.items():
            if field in described.get("properties", {}):
                described["properties"][field]["description"] = text


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for part in model.__subclasses__():
        yield part
        yield from _subclasses(part)


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """By field, the comment behind it or the lines above it."""
    found: dict[str, str] = {}
    for part in model.__mro__:
        above: list[str] = []
        for line in inspect.getsource(part).splitlines() if issubclass(part, SpecPart) else ():
            if comment := _COMMENT.match(line):
                above.append(comment.group(1))
                continue
            if field := _FIELD.match(line):
                text = field.group("comment") or " ".join(above)
                found |= {field.group(1): text} if text else {}
            above = []
    return found
