"""The catalogue in memory: every definition read and checked once, found by name."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from evergrant_server.core.errors import Code, Failure
from providers.quirks import QUIRKS
from providers.spec import ProviderSpec

CATALOG = Path(__file__).parent / "catalog"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice: the second would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]  # PyYAML has no types
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class Registry:
    """The providers of one catalogue. Immutable: a changed file needs a new `load`."""

    def __init__(self, specs: dict[str, ProviderSpec]) -> None:
        self._specs = dict(sorted(specs.items()))

    @classmethod
    def load(cls, folder: Path | None = None) -> "Registry":
        """Read every `*.yaml` of a folder (the catalogue beside this file without one).

        Raises Failure INVALID_REQUEST naming the file, the provider and the field that is wrong.
        """
        specs: dict[str, ProviderSpec] = {}
        for path in sorted((folder or CATALOG).glob("*.yaml")):
            spec = read_spec(path.read_text(encoding="utf-8"), path.name)
            if spec.name != path.stem:
                raise _wrong(path.name, f"name: is {spec.name!r}, but the file is called {path.stem!r}")
            specs[spec.name] = spec
        return cls(specs)

    def get(self, name: str) -> ProviderSpec:
        """The definition with this name. Raises Failure PROVIDER_UNKNOWN."""
        try:
            return self._specs[name]
        except KeyError:
            raise Failure(
                Code.PROVIDER_UNKNOWN, f"no provider is called {name[:64]!r}", field="provider"
            ) from None

    def names(self) -> tuple[str, ...]:
        return tuple(self._specs)

    def all(self) -> tuple[ProviderSpec, ...]:
        return tuple(self._specs.values())


def read_spec(text: str, where: str) -> ProviderSpec:
    """One definition from YAML. Raises Failure INVALID_REQUEST with every wrong field named."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader underneath
    except yaml.YAMLError as error:
        raise _wrong(where, f"is not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(data, dict):
        raise _wrong(where, "is not a mapping of fields")
    try:
        spec = ProviderSpec.model_validate(data)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, item['loc'])) or 'definition'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise _wrong(where, "; ".join(lines), str(data.get("name", ""))) from None
    unknown = set(spec.quirks) - set(QUIRKS)
    if unknown:
        raise _wrong(where, f"quirks: no hook is called {', '.join(sorted(unknown))}", spec.name)
    return spec


def _wrong(where: str, what: str, provider: str = "") -> Failure:
    named = f"provider {provider!r} in {where}" if provider else where
    return Failure(Code.INVALID_REQUEST, f"{named}: {what}", field=what.split(":", 1)[0])
