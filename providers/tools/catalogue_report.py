"""Checks every definition of the catalogue, every vector, and their agreement. Sends no request."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import Failure
from providers.definition.parsing import InvalidYaml, parse_yaml, read_definition_file
from providers.definition.registry import CATALOG, Registry
from providers.definition.schema import ProviderSpec
from providers.definition.validation import DefinitionProblem, problems_of
from providers.tools.evidence import (
    PARTS,
    Grounds,
    absent_parts,
    evidence_problems,
    grounds_of,
    last_changes,
    sourced_parts,
)
from providers.tools.vector_shape import GUIDE, shape_problems

VECTORS = CATALOG.parent.parent / "tests" / "conformance" / "providers" / "vectors"
_MIN_SOURCES = 2  # independent sources


@dataclass(frozen=True)
class UnusableFlow:
    """A flow that a definition lists and that isn't usable, with the field and the reason."""

    provider: str
    flow: str
    field: str
    why: str
    in_every_flow: bool  # no flow of this definition is usable

    def __str__(self) -> str:
        kind = "not usable" if self.in_every_flow else f"usable, but not for {self.flow}"
        return f"{self.provider}: {kind}: {self.field}: {self.why}"


@dataclass(frozen=True)
class CatalogueReport:
    """The counts of the catalogue, and its problems."""

    count: int
    with_two_sources: int
    unusable_definitions: int  # definitions without a usable flow
    unusable: tuple[UnusableFlow, ...]  # flows that are not supported yet
    vectors: int | None  # None: this checkout has none
    # by part: how many vectors have a source, and how many record that none was found
    evidence: dict[str, tuple[int, int]]
    problems: tuple[DefinitionProblem, ...] = field(default=())

    @property
    def two_source_share(self) -> float:
        """The share of definitions with two or more independent sources for the token endpoint."""
        return self.with_two_sources / self.count if self.count else 0.0


def check_catalogue(catalog: Path = CATALOG, vectors: Path | None = VECTORS) -> CatalogueReport:
    """Check every definition of a folder, and the vectors, if their folder exists."""
    specs: dict[str, ProviderSpec] = {}
    problems: list[DefinitionProblem] = []
    for path in sorted(catalog.glob("*.yaml")):
        try:
            spec = specs[path.stem] = read_definition_file(path)
        except Failure as failure:
            problems.append(_unreadable_definition(path.name, failure))
        else:
            problems += problems_of(spec, path.name)
    problems += _disagreements(specs)
    vectors = vectors if vectors is not None and vectors.is_dir() else None
    read: dict[str, dict[str, Any]] = {}
    if vectors is not None:
        read, unread = _read_vectors(vectors)
        problems += unread
        problems += _lone_files(specs, vectors, {path.stem for path in catalog.glob("*.yaml")})
        for name in specs.keys() & read.keys():
            problems += vector_problems(specs[name], read[name], f"vectors/{name}.yaml")
    return CatalogueReport(
        count=len(specs),
        with_two_sources=sum(
            spec.sources.agreeing.get("token_endpoint", 0) >= _MIN_SOURCES for spec in specs.values()
        ),
        unusable_definitions=sum(unusable_field(spec) is not None for spec in specs.values()),
        unusable=tuple(flow for spec in specs.values() for flow in unusable_flows(spec)),
        vectors=len(read) if vectors is not None else None,
        evidence={
            part: (
                sum(part in sourced_parts(vector) for vector in read.values()),
                sum(part in absent_parts(vector) for vector in read.values()),
            )
            for part in PARTS
        },
        problems=tuple(problems),
    )


def catalogue_grounds(catalog: Path = CATALOG, vectors: Path = VECTORS) -> list[Grounds]:
    """What each readable entry of a folder rests on, the least sourced refusals first."""
    read = _read_vectors(vectors)[0] if vectors.is_dir() else {}
    changes = last_changes(catalog, *([vectors] if vectors.is_dir() else []))
    specs = Registry.load(catalog).all()
    grounds = [grounds_of(spec, read.get(spec.name), changes.get(spec.name)) for spec in specs]
    return sorted(grounds, key=lambda entry: (entry.sourced_refusals, entry.token_endpoint, entry.provider))


def _unreadable_definition(file: str, failure: Failure) -> DefinitionProblem:
    problem = failure.detail.partition(f"{file}: ")[2]
    field, _, rest = problem.partition(": ")
    if not rest or " " in field:
        return DefinitionProblem(file, "file", problem, "Correct it")
    return DefinitionProblem(file, field, rest, "Correct it")


def unusable_field(spec: ProviderSpec) -> str | None:
    """The field that makes every flow of a definition unusable, or None."""
    try:
        spec.require_any_flow()
    except Failure as failure:
        return str(failure.context["field"])
    return None


def unusable_flows(spec: ProviderSpec) -> Iterator[UnusableFlow]:
    """The flows of a definition that aren't usable, with one reason each."""
    dead = unusable_field(spec) is not None
    for mode in spec.auth_modes:
        for field_name, why in spec.unsupported_fields(Flow(mode)):
            yield UnusableFlow(spec.name, mode, field_name, why, dead)
            break


def _disagreements(specs: dict[str, ProviderSpec]) -> Iterator[DefinitionProblem]:
    """Differences between definitions that share a token endpoint."""
    sharing: dict[str, list[ProviderSpec]] = defaultdict(list)
    for spec in specs.values():
        signs_assertions = spec.auth_modes == ("jwt_bearer",)  # a service account sends no secret
        if spec.token_endpoint and not spec.token_endpoint.startswith("https://{") and not signs_assertions:
            sharing[spec.token_endpoint].append(spec)
    for first, *others in sharing.values():
        difference = f"differs from {first.name}.yaml, which has the same token endpoint"
        for file in others:
            for name in ("client_auth", "token_request_format", "token_request_method", "client_id_param"):
                if getattr(first, name) != getattr(file, name):
                    yield DefinitionProblem(f"{file.name}.yaml", name, difference, "Find out which is right")


def _read_vectors(folder: Path) -> tuple[dict[str, dict[str, Any]], list[DefinitionProblem]]:
    """The vectors that can be read, by name, and the problems of the others."""
    vectors: dict[str, dict[str, Any]] = {}
    problems: list[DefinitionProblem] = []
    for path in sorted(folder.glob("*.yaml")):
        file = f"vectors/{path.name}"
        try:
            vector = parse_yaml(path.read_text(encoding="utf-8"))
        except (InvalidYaml, UnicodeDecodeError) as error:
            problems.append(DefinitionProblem(file, "file", str(error)[:300], "Correct it"))
            continue
        if isinstance(vector, dict):
            vectors[path.stem] = vector
        else:
            problem = "is not a mapping of fields"
            problems.append(DefinitionProblem(file, "file", problem, f"Add one: {GUIDE}"))
    return vectors, problems


def _lone_files(
    specs: dict[str, ProviderSpec], vectors: Path, defined: set[str]
) -> Iterator[DefinitionProblem]:
    """Vectors without a definition and the reverse.

    `defined` includes the names of unreadable definitions, whose vectors may be valid.
    """
    present = {path.stem for path in vectors.glob("*.yaml")}
    for name in sorted(present - defined):
        yield DefinitionProblem(f"vectors/{name}.yaml", "file", "has no definition", "Rename or delete it")
    for name in sorted(specs.keys() - present):
        yield DefinitionProblem(f"vectors/{name}.yaml", "file", "is missing", f"Add one: {GUIDE}")


def vector_problems(spec: ProviderSpec, vector: dict[str, Any], file: str) -> list[DefinitionProblem]:
    """The mistakes of one vector that need no request to be found."""
    problems = [
        (part, "is missing", f"Add it: {GUIDE}") for part in _expected_parts(spec) if not vector.get(part)
    ]
    # a vector in another shape has no evidence to check
    problems += list(shape_problems(spec, vector)) or list(evidence_problems(vector))
    return [DefinitionProblem(file, *each) for each in problems]


def _expected_parts(spec: ProviderSpec) -> tuple[str, ...]:
    """The parts that a vector needs for its definition."""
    if "authorization_code" not in spec.auth_modes:
        return ("grants", "refusals")
    parts = ("authorize", "exchange", "refusals")
    if spec.refresh_supported:
        parts += ("refresh",)
    if spec.post_token_exchange is not None:
        parts += ("post_exchange",)
    parts += ("lookups",) if spec.post_auth else ()
    return (*parts, "revoke") if spec.has_revocation else parts
