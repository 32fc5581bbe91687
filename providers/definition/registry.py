"""The catalogue in memory: every definition, parsed once and found by name."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from evergrant_server.core.connections.refresh_rules import RefreshRules
from evergrant_server.core.definition import Definition, serving_versions
from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import describe_errors
from providers.definition.strict_yaml import MAX_CHARACTERS, InvalidYaml, parse_yaml
from providers.json_type import json_type
from providers.quirks import QUIRKS

CATALOG = Path(__file__).resolve().parents[1] / "catalog"
_MAX_TENANT_SPECS = 1000  # parsed versions of tenants kept in memory
_MAX_ERRORS = 12


class Registry:
    """The definitions of one catalogue, and the tenants' versions that callers pass in.

    A changed file takes effect with the next `load`.
    """

    def __init__(self, specs: dict[str, ProviderSpec]) -> None:
        self._specs = dict(sorted(specs.items()))
        self._tenant_specs: dict[str, ProviderSpec] = {}

    @classmethod
    def load(cls, folder: Path | None = None) -> "Registry":
        """Read every `*.yaml` of a folder, by default the catalogue.

        Raises Failure INVALID_REQUEST naming the file, the provider and the field that is wrong.
        """
        specs: dict[str, ProviderSpec] = {}
        for path in sorted((folder or CATALOG).glob("*.yaml")):
            spec = read_definition_file(path)
            specs[spec.name] = spec
        return cls(specs)

    def get(self, name: str) -> ProviderSpec:
        """The definition with this name. Raises Failure PROVIDER_UNKNOWN."""
        try:
            return self._specs[name]
        except KeyError:
            raise Failure(
                ErrorCode.PROVIDER_UNKNOWN, f"no provider is called {name[:64]!r}", field="provider"
            ) from None

    def candidates(
        self, name: str, versions: Sequence[Definition], identity: str | None = None
    ) -> list[tuple[ProviderSpec, Definition | None]]:
        """The definitions that apply to `identity`: a tenant's version before the catalogue's (None).

        A staged version comes before the one that it replaces. Raises Failure PROVIDER_UNKNOWN.
        """
        found: list[tuple[ProviderSpec, Definition | None]] = []
        for definition in serving_versions(versions, identity):
            if definition is not None:
                found.append((self.parse(definition), definition))
            elif name in self._specs or not found:
                found.append((self.get(name), None))
        return found

    def serving(self, name: str, versions: Sequence[Definition], identity: str | None = None) -> ProviderSpec:
        """The first of `candidates`. Raises Failure PROVIDER_UNKNOWN."""
        return self.candidates(name, versions, identity)[0][0]

    def refresh_rules(self, name: str, versions: Sequence[Definition], identity: str) -> RefreshRules:
        """The refresh rules of the last candidate, since a staged version isn't relied on for them.

        Raises Failure PROVIDER_UNKNOWN, or INVALID_REQUEST for a stored version that is no longer valid.
        """
        return self.candidates(name, versions, identity)[-1][0].refresh_rules()

    def parse(self, definition: Definition) -> ProviderSpec:
        """A tenant's version, parsed once, since a version never changes."""
        known = self._tenant_specs.get(definition.id)
        if known is None:
            if len(self._tenant_specs) >= _MAX_TENANT_SPECS:
                self._tenant_specs.clear()
            known = parse_definition(definition.document, f"version {definition.version}")
            self._tenant_specs[definition.id] = known
        return known

    def offline_scope(self, name: str) -> str | None:
        """The offline scope of a provider in the catalogue; None for a tenant's own provider."""
        spec = self._specs.get(name)
        return spec.offline_scope if spec else None

    def names(self) -> tuple[str, ...]:
        return tuple(self._specs)

    def all(self) -> tuple[ProviderSpec, ...]:
        return tuple(self._specs.values())


def read_definition_file(path: Path) -> ProviderSpec:
    """One definition from its file. Raises Failure INVALID_REQUEST."""
    spec = _cached_parse(_read_text(path), path.name)
    if spec.name != path.stem:
        raise _invalid_definition(path.name, f"name: is {spec.name!r}, but the file is called {path.stem!r}")
    return spec


@lru_cache(maxsize=512)  # tests load the catalogue many times
def _cached_parse(text: str, where: str) -> ProviderSpec:
    return parse_yaml_definition(text, where)


def parse_yaml_definition(text: str, where: str) -> ProviderSpec:
    """One definition from YAML. Raises Failure INVALID_REQUEST that names every invalid field."""
    try:
        data = parse_yaml(text)
    except InvalidYaml as error:
        raise _invalid_definition(where, str(error)) from None
    return parse_definition(data, where)


def parse_definition(data: object, where: str) -> ProviderSpec:
    """A definition from parsed data. Raises Failure INVALID_REQUEST that names every invalid field."""
    if not isinstance(data, dict):
        shape = "empty" if data is None else json_type(data)
        raise _invalid_definition(where, f"is {shape}, not a mapping of fields")
    try:
        spec = ProviderSpec.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        lines = describe_errors(ProviderSpec, found, _MAX_ERRORS)
        raise _invalid_definition(where, "; ".join(lines), str(data.get("name", ""))[:64]) from None
    unknown = set(spec.quirks) - set(QUIRKS)
    if unknown:
        raise _invalid_definition(where, f"quirks: unknown: {', '.join(sorted(unknown))[:200]}", spec.name)
    return spec


def _read_text(path: Path) -> str:
    """The text of a file, up to the limit of `parse_yaml`. Raises Failure INVALID_REQUEST."""
    try:
        with path.open("rb") as file:
            return file.read(4 * MAX_CHARACTERS + 1).decode("utf-8")
    except UnicodeDecodeError:
        raise _invalid_definition(path.name, "is not UTF-8") from None
    except OSError as error:
        raise _invalid_definition(path.name, f"can't be read: {error.strerror}") from None


def _invalid_definition(where: str, what: str, provider: str = "") -> Failure:
    named = f"provider {provider!r} in {where}" if provider else where
    return Failure(ErrorCode.INVALID_REQUEST, f"{named}: {what}", field=what.split(":", 1)[0])
