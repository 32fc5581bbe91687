"""Checks every definition of the catalogue, every vector, and their agreement. Sends no request."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import Failure
from providers.definition.parsing import InvalidYaml, parse_yaml, read_definition_file
from providers.definition.registry import CATALOG
from providers.definition.schema import ProviderSpec
from providers.definition.validation import DefinitionProblem, problems_of
from providers.tools.evidence import PARTS, absent_parts, evidence_problems, sourced_parts

VECTORS = CATALOG.parent.parent / "tests" / "conformance" / "providers" / "vectors"
_MIN_SOURCES = 2  # independent sources
_GUIDE = "docs/guide/adding-a-provider.md says how"
_VECTOR_FIELDS = {
    *("params", "scopes", "slot_scopes", "endpoints", "facts"),  # what is given
    *("authorize", "callbacks", "exchange", "post_exchange", "refresh", "revoke", "grants"),
    *("replies", "refusals", "none_found", "lookups", "api"),
}
_REQUIRED_TOKEN_FIELDS = {"access_token", "refresh_token", "expires_in", "scopes"}
_OPTIONAL_TOKEN_FIELDS = {"token_type", "metadata", "id_token", "refresh_expires_in"}


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
        problems += _vector_problems(specs, read, {path.stem for path in catalog.glob("*.yaml")})
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


def _unreadable_definition(file: str, failure: Failure) -> DefinitionProblem:
    what = failure.detail.partition(f"{file}: ")[2]
    field, _, rest = what.partition(": ")
    if not rest or " " in field:
        return DefinitionProblem(file, "file", what, "Correct it")
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
        what = f"differs from {first.name}.yaml, which has the same token endpoint"
        for other in others:
            for name in ("client_auth", "token_request_format", "token_request_method", "client_id_param"):
                if getattr(first, name) != getattr(other, name):
                    yield DefinitionProblem(f"{other.name}.yaml", name, what, "Find out which is right")


def _read_vectors(folder: Path) -> tuple[dict[str, dict[str, Any]], list[DefinitionProblem]]:
    """The vectors by name, and the problems of those that can't be read, which are empty here."""
    vectors: dict[str, dict[str, Any]] = {}
    problems: list[DefinitionProblem] = []
    for path in sorted(folder.glob("*.yaml")):
        file, vectors[path.stem] = f"vectors/{path.name}", {}
        try:
            vector = parse_yaml(path.read_text(encoding="utf-8"))
        except (InvalidYaml, UnicodeDecodeError) as error:
            problems.append(DefinitionProblem(file, "file", str(error)[:300], "Correct it"))
            continue
        if isinstance(vector, dict):
            vectors[path.stem] = vector
        else:
            what = "is not a mapping of fields"
            problems.append(DefinitionProblem(file, "file", what, f"Add one: {_GUIDE}"))
    return vectors, problems


def _vector_problems(
    specs: dict[str, ProviderSpec], vectors: dict[str, dict[str, Any]], defined: set[str]
) -> Iterator[DefinitionProblem]:
    """`defined` includes the names of unreadable definitions, whose vectors may be valid."""
    for name in sorted(vectors.keys() - defined):
        yield DefinitionProblem(f"vectors/{name}.yaml", "file", "has no definition", "Rename or delete it")
    for name, spec in specs.items():
        file = f"vectors/{name}.yaml"
        if name not in vectors:
            yield DefinitionProblem(file, "file", "is missing", f"Add one: {_GUIDE}")
            continue
        vector = vectors[name]
        if "scopes" not in vector:
            yield DefinitionProblem(
                file, "scopes", "is missing", "List the scopes that an app requests, or []"
            )
        for part in _expected_parts(spec):
            if not vector.get(part):
                yield DefinitionProblem(file, part, "is missing", f"Add it: {_GUIDE}")
        for found in (*_field_problems(vector), *evidence_problems(vector)):
            yield DefinitionProblem(file, *found)


def _field_problems(vector: dict[Any, Any]) -> Iterator[tuple[str, str, str]]:
    """Fields that no test reads, and missing fields of tokens."""
    for name in sorted(map(str, vector.keys() - _VECTOR_FIELDS)):
        yield name[:64], "is read by no test", f"Correct its name: {_GUIDE}"
    expected = [(name, vector.get(name)) for name in ("exchange", "post_exchange", "refresh")]
    replies = vector.get("replies")
    if isinstance(replies, list):
        expected += [(f"replies.{place}", reply) for place, reply in enumerate(replies)]
    for where, part in expected:
        tokens = part.get("tokens") if isinstance(part, dict) else None
        if isinstance(tokens, dict):
            for name in sorted(_REQUIRED_TOKEN_FIELDS - tokens.keys()):
                yield f"{where}.tokens.{name}", "is missing", "Add it, with null where the reply has none"
            for name in sorted(map(str, tokens.keys() - _REQUIRED_TOKEN_FIELDS - _OPTIONAL_TOKEN_FIELDS)):
                yield f"{where}.tokens.{name[:64]}", "is read by no test", f"Correct its name: {_GUIDE}"


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
