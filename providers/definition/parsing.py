"""Parses definitions strictly; describes their errors by field and repair, never by value.

Plain data, each key once, no aliases, a bounded size. An alias can expand a file of a hundred bytes to
gigabytes, and of a repeated key the first value would be lost silently.
"""

from collections.abc import Sequence
from datetime import date
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.text import json_type
from providers.definition.schema import ProviderSpec
from providers.quirks import QUIRKS

CATALOG = Path(__file__).resolve().parents[1] / "catalog"
_MAX_CHARACTERS = 64 * 1024
_MAX_DEPTH = 32
_MAX_ERRORS = 12
_MESSAGES = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of fields",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list: [one, another]",
    "missing": "is missing",
    "model_type": "must be a mapping of fields",
    "string_type": "must be text, which needs quotes here in YAML",
    "too_short": "must not be empty",
    "tuple_type": "must be a list: [one, another]",
}
_MAX_NAME_LENGTH = 64

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
    """The data of one document. Raises InvalidYaml."""
    if len(text) > _MAX_CHARACTERS:
        raise InvalidYaml(f"has {len(text)} characters; the limit is {_MAX_CHARACTERS}")
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


def describe_errors(errors: Sequence[ErrorDetails], model: type[BaseModel] = ProviderSpec) -> list[str]:
    """A line `field: problem` for each error up to a limit, and the number of the others."""
    # pydantic calls a list whose only item is invalid too short as well
    ancestors = {item["loc"][:depth] for item in errors for depth in range(len(item["loc"]))}
    leaves = [item for item in errors if item["type"] != "too_short" or item["loc"] not in ancestors]
    rest = [f"and {len(leaves) - _MAX_ERRORS} more"] if len(leaves) > _MAX_ERRORS else []
    return [*(_describe_error(item, model) for item in leaves[:_MAX_ERRORS]), *rest]


def _describe_error(item: ErrorDetails, model: type[BaseModel]) -> str:
    message = _MESSAGES.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be")
    if not item["loc"]:
        return _describe_model_error(message)
    field = ".".join(_printable_name(str(part)) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{field}: is no field{_suggestion(item['loc'], model)}"
    value = item["input"]
    if item["type"] == "missing" or (item["type"] == "value_error" and isinstance(value, dict)):
        return f"{field}: {message}"
    return f"{field}: {message} (it is {_describe_type(value)})"


def _describe_model_error(message: str) -> str:
    """The message of a rule about several fields, which begins with a field's name."""
    first, _, rest = message.partition(" ")
    field = first.removesuffix(":")
    if field.split(".")[0] not in ProviderSpec.model_fields:
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


def _suggestion(path: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """A field with a similar name, or with this name in another part."""
    *parents, last = path
    name = str(last)[:_MAX_NAME_LENGTH]
    here = model
    for part in parents:
        field = here.model_fields.get(str(part))
        here = (_nested_model(field.annotation) if field else None) or here
    for close in get_close_matches(name, here.model_fields, n=1, cutoff=0.8):
        return f"; {'.'.join(map(str, (*parents, close)))} is one"
    if here is not model and name in model.model_fields:
        return f" of {'.'.join(map(str, parents))}; {name} is one by itself"
    for field_name, field in model.model_fields.items():
        part = _nested_model(field.annotation)
        if part is not None and name in part.model_fields:
            return f" by itself; {field_name}.{name} is one"
    listed = "docs/reference/provider.schema.json lists the fields"
    return f"; {listed}" if model is ProviderSpec else f", but {', '.join(here.model_fields)} are"


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `tuple[Model, …]` or `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(
        (part for argument in get_args(annotation) if (part := _nested_model(argument)) is not None), None
    )


def _printable_name(name: str) -> str:
    return name[:_MAX_NAME_LENGTH] if name.isprintable() else ascii(name[:_MAX_NAME_LENGTH])


def read_definition_file(path: Path) -> ProviderSpec:
    """One definition from its file, with the errors of the one beside it that it extends.

    Raises Failure INVALID_REQUEST.
    """
    spec = _own_definition(_read_text(path), path.name)
    if spec.name != path.stem:
        raise _invalid_definition(path.name, f"name: is {spec.name!r}, but the file is called {path.stem!r}")
    return _extended(spec, path.name, path.parent)


def parse_yaml_definition(text: str, where: str) -> ProviderSpec:
    """One definition from YAML. Raises Failure INVALID_REQUEST that names every invalid field."""
    return _extended(_own_definition(text, where), where)


def parse_definition(data: object, where: str) -> ProviderSpec:
    """A definition from parsed data. Raises Failure INVALID_REQUEST that names every invalid field."""
    return _extended(_validated(data, where), where)


@lru_cache(maxsize=64)  # siblings read the one that they extend
def _own_definition(text: str, where: str) -> ProviderSpec:
    """A definition as it is written. Raises Failure INVALID_REQUEST."""
    try:
        data = parse_yaml(text)
    except InvalidYaml as error:
        raise _invalid_definition(where, str(error)) from None
    return _validated(data, where)


def _validated(data: object, where: str) -> ProviderSpec:
    if not isinstance(data, dict):
        shape = "empty" if data is None else json_type(data)
        raise _invalid_definition(where, f"is {shape}, not a mapping of fields")
    try:
        spec = ProviderSpec.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        raise _invalid_definition(
            where, "; ".join(describe_errors(errors)), str(data.get("name", ""))[:64]
        ) from None
    unknown = set(spec.quirks) - set(QUIRKS)
    if unknown:
        raise _invalid_definition(where, f"quirks: unknown: {', '.join(sorted(unknown))[:200]}", spec.name)
    return spec


def _extended(spec: ProviderSpec, where: str, catalog: Path = CATALOG) -> ProviderSpec:
    """The definition with the errors of the catalogue's one that it extends, if it extends one."""
    if spec.extends is None:
        return spec
    file = f"{spec.extends}.yaml"
    if not (catalog / file).is_file():
        detail = f"extends: {spec.extends[:64]!r} is no definition of the catalogue"
        raise _invalid_definition(where, detail, spec.name)
    extended = _own_definition(_read_text(catalog / file), file)
    if extended.extends is not None:
        detail = f"extends: {spec.extends} extends {extended.extends}; extend that one"
        raise _invalid_definition(where, detail, spec.name)
    return spec.with_errors_of(extended)


def _read_text(path: Path) -> str:
    """The text of a file, up to the limit of `parse_yaml`. Raises Failure INVALID_REQUEST."""
    try:
        with path.open("rb") as file:
            return file.read(4 * _MAX_CHARACTERS + 1).decode("utf-8")
    except UnicodeDecodeError:
        raise _invalid_definition(path.name, "is not UTF-8") from None
    except OSError as error:
        raise _invalid_definition(path.name, f"can't be read: {error.strerror}") from None


def _invalid_definition(where: str, problem: str, provider: str = "") -> Failure:
    named = f"provider {provider!r} in {where}" if provider else where
    return Failure(ErrorCode.INVALID_REQUEST, f"{named}: {problem}", field=problem.split(":", 1)[0])
