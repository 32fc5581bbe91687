"""Describes schema errors of a definition: the field and the repair, never the value. Pure."""

from collections.abc import Sequence
from datetime import date
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from providers.json_type import json_type

_MESSAGES = {
    "dict_type": "must be a mapping of fields",
    "missing": "is missing",
    "model_type": "must be a mapping of fields",
    "string_type": "must be text, which needs quotes here in YAML",
    "too_short": "must not be empty",
    "tuple_type": "must be a list: [one, another]",
}
_MAX_NAME_LENGTH = 64


def describe_errors(schema: type[BaseModel], found: Sequence[ErrorDetails], most: int) -> list[str]:
    """A line `field: problem` for each of the first `most` errors, and the number of the others."""
    # pydantic calls a list whose only item is invalid too short as well
    ancestors = {item["loc"][:depth] for item in found for depth in range(len(item["loc"]))}
    own = [item for item in found if item["type"] != "too_short" or item["loc"] not in ancestors]
    more = [f"and {len(own) - most} more"] if len(own) > most else []
    return [*(_describe_error(schema, item) for item in own[:most]), *more]


def _describe_error(schema: type[BaseModel], item: ErrorDetails) -> str:
    message = _MESSAGES.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return _describe_model_error(schema, message)
    field = ".".join(_printable_name(str(part)) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{field}: is no field{_suggestion(schema, item['loc'])}"
    value = item["input"]
    if item["type"] == "missing" or (item["type"] == "value_error" and isinstance(value, dict)):
        return f"{field}: {message}"
    return f"{field}: {message} (it is {_describe_type(value)})"


def _describe_model_error(schema: type[BaseModel], message: str) -> str:
    """The message of a rule about several fields, which begins with a field's name."""
    first, _, rest = message.partition(" ")
    field = first.removesuffix(":")
    if field.split(".")[0] not in schema.model_fields:
        return f"definition: {message}"
    return f"{field}: {message if rest.startswith('and ') else rest}"


def _describe_type(value: Any) -> str:
    match value:
        case str():
            return f"{json_type(value)} of {len(value)} character{'s' * (len(value) != 1)}"
        case bool():
            return f"{json_type(value)}: in YAML on, off, yes and no need quotes"
        case date():
            return "a date"
        case _:
            return json_type(value)


def _suggestion(schema: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """A field with a similar name, or with this name in another part."""
    *parents, last = path
    name, here = str(last)[:_MAX_NAME_LENGTH], schema
    for part in parents:
        field = here.model_fields.get(str(part))
        here = (_nested_model(field.annotation) if field else None) or here
    for close in get_close_matches(name, here.model_fields, n=1, cutoff=0.8):
        return f"; {'.'.join(map(str, (*parents, close)))} is one"
    if here is not schema and name in schema.model_fields:
        return f" of {'.'.join(map(str, parents))}; {name} is one by itself"
    for other, field in schema.model_fields.items():
        part = _nested_model(field.annotation)
        if part is not None and name in part.model_fields:
            return f" by itself; {other}.{name} is one"
    return "; docs/reference/provider.schema.json lists the fields"


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `tuple[Model, …]` or `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((part for it in get_args(annotation) if (part := _nested_model(it)) is not None), None)


def _printable_name(name: str) -> str:
    return name[:_MAX_NAME_LENGTH] if name.isprintable() else ascii(name[:_MAX_NAME_LENGTH])
