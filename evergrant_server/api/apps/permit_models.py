"""Bodies and views of permits."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from evergrant_server.api.http.models import Body, Scope, Scopes, UtcDatetime, View, _printable, _slug
from evergrant_server.core.access import Action, Effect, EnforcementMode
from evergrant_server.core.ids import is_id
from evergrant_server.policy.networks import network_texts
from evergrant_server.policy.paths import path_pattern_problem


def _permitted_subject(value: str) -> str:
    if "*" in value[:-1]:
        raise ValueError("only its last character may be *, which stands for whatever follows")
    return _printable(value)


def _connection_id(value: str) -> str:
    if not is_id(value, "con"):
        raise ValueError("is not the id of a connection")
    return value


def _path_pattern(value: str) -> str:
    if problem := path_pattern_problem(value):
        raise ValueError(problem)
    return value


def _tool_pattern(value: str) -> str:
    if "*" in value[:-1]:
        raise ValueError("only its last character may be *, which stands for whatever follows")
    return _printable(value)


Tool = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_tool_pattern)]
Method = Annotated[str, Field(pattern="^[A-Z]{1,20}$")]
PathPattern = Annotated[str, Field(max_length=500), AfterValidator(_path_pattern)]
Name = Annotated[str, AfterValidator(lambda it: it if it == "*" else _slug(it))]
Note = Annotated[str, Field(max_length=500), AfterValidator(_printable)]


class PermitBody(Body):
    """A request is allowed when a permit with `effect: allow` fits it, and none with `effect: deny` does.

    `integration` and `provider` are a name, or `*` for every one. `subjects` are exact names, or `*` for
    all; a subject that ends in `*` stands for every subject that begins with what is before it. `connections`
    are ids; `sources` are networks in CIDR notation that the caller's address is in; null: any. After
    `expires_at` the permit fits nothing.

    Of an allow: `scope_ceiling` has the scopes that a token may have, null every one; `exact_scopes` refuses
    a lease whose token can do more than the scopes it requests. Of a deny: `scopes` has the scopes that it
    denies, null all requests; with `mode: observe` it refuses nothing, and what it would have denied is
    recorded. A deny also refuses what it can't tell apart: requests for a whole that holds what it denies,
    and callers without a known address.

    `methods` and `paths` are of the action `proxy`: the requests to the provider's API that it allows or
    denies, null every one. A path begins behind the API's base URL; its segment `*` stands for any one
    segment, and `**` at the end for all that follow. An allow has to fit a path with `%2F` in both readings;
    a deny fits every way in which a lenient server could read a path. A request that names a second method
    (`_method`, `X-HTTP-Method-Override`) fits each deny with `methods`, and no allow with them. What an API
    takes for the same thing, or reads in a body, isn't known here: to deny paths is best effort. `tools` are
    the same of tools of an MCP server; one that ends in `*` stands for all that begin so. With
    `call_approval` each of these requests, of an MCP server each call of a tool, needs a person's approval
    (`POST /v1/call-approvals`).
    """

    effect: Effect = Effect.ALLOW
    mode: EnforcementMode = EnforcementMode.ENFORCE
    integration: Name
    provider: Name = "*"
    subjects: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_permitted_subject)], ...],
        Field(min_length=1, max_length=1000),
    ] = ("*",)
    connections: (
        Annotated[
            tuple[Annotated[str, AfterValidator(_connection_id)], ...], Field(min_length=1, max_length=1000)
        ]
        | None
    ) = None
    sources: (
        Annotated[
            tuple[Annotated[str, Field(max_length=100)], ...],
            Field(min_length=1, max_length=100),
            AfterValidator(network_texts),
        ]
        | None
    ) = None
    scope_ceiling: Scopes | None = None
    exact_scopes: bool = False
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=200)] | None = None
    actions: Annotated[tuple[Action, ...], Field(min_length=1)]
    expires_at: UtcDatetime | None = None
    purpose: Note = ""
    owner: Note = ""
    reason: Note = ""
    methods: Annotated[tuple[Method, ...], Field(min_length=1, max_length=20)] | None = None
    paths: Annotated[tuple[PathPattern, ...], Field(min_length=1, max_length=200)] | None = None
    call_approval: bool = False
    tools: Annotated[tuple[Tool, ...], Field(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _has_fields_of_its_effect(self) -> Self:
        if self.effect is Effect.ALLOW and self.scopes is not None:
            raise ValueError("an allow has scope_ceiling: scopes are those that a deny refuses")
        if self.effect is Effect.ALLOW and self.mode is EnforcementMode.OBSERVE:
            raise ValueError("only a deny observes")
        if self.effect is Effect.DENY and (self.scope_ceiling is not None or self.exact_scopes):
            raise ValueError("a deny has scopes: scope_ceiling and exact_scopes are of an allow")
        names_requests = any(it is not None for it in (self.methods, self.paths, self.tools))
        if names_requests and set(self.actions) != {Action.PROXY}:
            raise ValueError("methods, paths and tools are of a permit whose only action is proxy")
        if self.call_approval and (self.effect is Effect.DENY or set(self.actions) != {Action.PROXY}):
            raise ValueError("call_approval is of an allow whose only action is proxy")
        return self


class PermitView(View):
    id: str
    name: str
    effect: Effect
    mode: EnforcementMode
    integration: str
    provider: str
    subjects: tuple[str, ...]
    connections: tuple[str, ...] | None
    sources: tuple[str, ...] | None
    scope_ceiling: tuple[str, ...] | None
    exact_scopes: bool
    scopes: tuple[str, ...] | None
    actions: tuple[Action, ...]
    expires_at: datetime | None
    purpose: str
    owner: str
    reason: str
    methods: tuple[str, ...] | None
    paths: tuple[str, ...] | None
    call_approval: bool
    tools: tuple[str, ...] | None
    created_at: datetime
    revision: int
