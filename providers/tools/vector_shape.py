"""The fields of a vector and their types. Pure.

docs/guide/adding-a-provider.md describes them for authors. A field that isn't here is read by no test.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from evergrant_server.core.errors import Failure
from evergrant_server.core.model import CheckedModel
from providers.definition.parsing import describe_errors
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import RequestKind
from providers.definition.templates import checked_params

Fields = dict[str, Any]
EvidenceKind = Literal["dead_token", "client", "passing", "success", "refresh"]
GUIDE = "docs/guide/adding-a-provider.md says how"


class _Part(CheckedModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class VectorRequest(_Part):
    """What must be sent. `query`, `form` and `json` are complete; of the headers those that are named."""

    method: Literal["GET", "POST", "DELETE"]
    url: str
    headers: dict[str, str] = Field(default_factory=dict)
    query: dict[str, str] | None = None
    form: dict[str, str] | None = None
    body: Annotated[Any, Field(alias="json")] = None


class VectorReply(_Part):
    """A provider's reply: `json`, or `text` as it came."""

    status: int
    headers: dict[str, str] = Field(default_factory=dict)
    body: Annotated[Any, Field(alias="json")] = None
    text: str | None = None


class VectorTokens(_Part):
    """What must be read from a reply; the first four are always there, null where the reply has none."""

    access_token: str
    refresh_token: str | None
    expires_in: float | None
    scopes: list[str] | None
    token_type: str | None = None
    metadata: Fields = Field(default_factory=dict)
    id_token: str | None = None
    refresh_expires_in: float | None = None


class VectorAuthorization(_Part):
    """The address that the browser is sent to."""

    url: str
    query: dict[str, str]
    fragment: str | None = None
    route: str | None = None
    order: list[str] | None = None
    raw: str | None = None


class VectorExchange(_Part):
    """A request for tokens, its reply and what is read from it."""

    request: VectorRequest
    reply: VectorReply
    tokens: VectorTokens
    further: dict[str, VectorTokens] = Field(default_factory=dict)
    source: str | None = None


class VectorRevocation(_Part):
    """A revocation, and the replies that say that the token was gone already."""

    request: VectorRequest
    reply: VectorReply
    gone: list[VectorReply] = Field(default_factory=list)
    source: str | None = None


class VectorGrant(_Part):
    """A grant without a code."""

    request: VectorRequest
    reply: VectorReply
    tokens: VectorTokens
    claims: Fields | None = None
    temporary: str | None = None
    authorize: VectorAuthorization | None = None
    source: str | None = None


class FurtherReply(_Part):
    """Another shape of a reply."""

    to: Literal["exchange", "refresh"]
    reply: VectorReply
    tokens: VectorTokens
    further: dict[str, VectorTokens] = Field(default_factory=dict)
    source: str | None = None


class VectorRefusal(_Part):
    """The provider's own words when it refuses, and the code that must be read from them.

    `at` is what was requested: a refresh, unless a code was refused.
    """

    of: Literal["dead_token", "dead_code", "subject", "client", "passing"]
    at: RequestKind | None = None
    reply: VectorReply
    code: str
    retry_after: float | None = None
    source: str = Field(min_length=1)
    undecidable: str | None = None


class VectorCallback(_Part):
    """A callback, and what must be read from it."""

    query: Fields
    code: str | None = None
    denied: bool = False
    scopes: list[str] | None = None
    metadata: Fields = Field(default_factory=dict)


class VectorOption(_Part):
    id: str
    label: str
    metadata: Fields


class VectorLookup(_Part):
    """A reply that lists accounts, and the options that must be read from it."""

    reply: VectorReply
    options: list[VectorOption]


class Vector(_Part):
    """One provider's vector."""

    params: dict[str, str] = Field(default_factory=dict)
    endpoints: dict[str, str | bool | list[str]] = Field(default_factory=dict)  # as `Endpoints`
    facts: Fields = Field(default_factory=dict)
    scopes: list[str]
    slot_scopes: dict[str, list[str]] = Field(default_factory=dict)
    authorize: VectorAuthorization | None = None
    exchange: VectorExchange | None = None
    post_exchange: VectorExchange | None = None
    refresh: VectorExchange | None = None
    revoke: VectorRevocation | None = None
    grants: dict[str, VectorGrant] = Field(default_factory=dict)
    replies: list[FurtherReply] = Field(default_factory=list)
    refusals: list[VectorRefusal] = Field(default_factory=list)
    none_found: list[EvidenceKind] = Field(default_factory=list)
    callbacks: list[VectorCallback] = Field(default_factory=list)
    lookups: list[list[VectorLookup]] = Field(default_factory=list)
    api: str | None = None


def shape_problems(spec: ProviderSpec, vector: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Fields that no test reads, missing ones, wrong types and parameters: field, what, the repair."""
    try:
        read = Vector.model_validate(vector)
    except ValidationError as error:
        for line in describe_errors(error.errors(include_url=False, include_context=False), Vector):
            field, _, problem = line.partition(": ")
            if problem:
                yield field, problem, _repair(field, problem)
            else:
                yield "vector", f"has {line.removeprefix('and ')} mistakes", "Correct them"
    else:
        yield from _param_problems(spec, read.params)


def _repair(field: str, problem: str) -> str:
    if problem != "is missing":
        return f"Correct it: {GUIDE}"
    if field.endswith(".source"):
        return "Name a public page, issue or file, or write unverified"
    if ".tokens." in field:
        return "Add it, with null where the reply has none"
    return f"Add it: {GUIDE}"


def _param_problems(spec: ProviderSpec, params: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Parameters that the definition doesn't have or accept, and those that it can't do without."""
    try:
        checked_params(spec, params)
    except Failure as failure:
        field = str(failure.context["field"])
        problem = failure.detail.removeprefix(field.removeprefix("params.")).strip()
        yield field, problem, "Correct it, or template_params in the definition"
    for name, rule in spec.template_params.items():
        needed = rule.source == "integration" and rule.default is None and not rule.optional
        if needed and name not in params:
            yield f"params.{name}", "is missing", f"Add it: {GUIDE}"
