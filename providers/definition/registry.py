"""The catalogue in memory: every definition, parsed once and found by name."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from evergrant_server.core.definition import Definition, serving_versions
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules
from providers.definition.parsing import CATALOG, parse_definition, read_definition_file
from providers.definition.schema import ProviderSpec

_MAX_TENANT_SPECS = 1000  # parsed versions of tenants kept in memory


class Registry:
    """The definitions of one catalogue, and the tenants' versions that callers pass in.

    A process reads a folder once: a changed file takes effect with the next process.
    """

    def __init__(self, specs: dict[str, ProviderSpec]) -> None:
        self._specs = dict(sorted(specs.items()))
        self._tenant_specs: dict[str, ProviderSpec] = {}

    @classmethod
    def load(cls, folder: Path | None = None) -> "Registry":
        """Read every `*.yaml` of a folder, by default the catalogue.

        Raises Failure INVALID_REQUEST naming the file, the provider and the field that is wrong.
        """
        return cls(_specs(folder or CATALOG))

    def get(self, name: str) -> ProviderSpec:
        """The definition with this name. Raises Failure PROVIDER_UNKNOWN."""
        try:
            return self._specs[name]
        except KeyError:
            raise unknown_provider(name, self._specs) from None

    def candidates(
        self, name: str, versions: Sequence[Definition], identity: str | None = None
    ) -> list[tuple[ProviderSpec, Definition | None]]:
        """The definitions that apply to `identity`: a tenant's version before the catalogue's (None).

        A staged version comes before the one that it replaces. Raises Failure PROVIDER_UNKNOWN.
        """
        candidates: list[tuple[ProviderSpec, Definition | None]] = []
        for definition in serving_versions(versions, identity):
            if definition is not None:
                candidates.append((self.parse(definition), definition))
            elif name in self._specs or not candidates:
                candidates.append((self.get(name), None))
        return candidates

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

    def scope_aliases(self, name: str | None) -> tuple[frozenset[str], ...]:
        """The names of each scope that has several, without case, at a provider in the catalogue."""
        spec = self._specs.get(name or "")
        return () if spec is None else spec.scope_alias_groups

    def names(self) -> tuple[str, ...]:
        return tuple(self._specs)

    def all(self) -> tuple[ProviderSpec, ...]:
        return tuple(self._specs.values())


@cache
def _specs(folder: Path) -> dict[str, ProviderSpec]:
    specs = (read_definition_file(path) for path in sorted(folder.glob("*.yaml")))
    return {spec.name: spec for spec in specs}


def unknown_provider(name: str, known: Iterable[str]) -> Failure:
    """PROVIDER_UNKNOWN, with similar names."""
    names = sorted(known)
    near = get_close_matches(name[:64].lower(), names, n=5, cutoff=0.6)
    near += [known for known in names if name.lower() in known and known not in near]
    hint = f"; similar: {', '.join(near[:5])}" if near else ""
    return Failure(ErrorCode.PROVIDER_UNKNOWN, f"no provider is called {name[:64]!r}{hint}", field="provider")
