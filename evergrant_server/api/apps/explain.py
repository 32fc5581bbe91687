"""`GET /v1/access/explain`: may an app use a connection, by which permit, and what else stops it now.

Judges by the functions of the lease decision (`access.judgement`), and starts nothing: no refresh, no
consent, no audit record.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator

from evergrant_server.access.context import integration_spec
from evergrant_server.access.judgement import (
    PermitJudge,
    lacks,
    row_of,
    state_refusal,
    target_of,
    without_offline,
)
from evergrant_server.access.narrowing import is_narrowable
from evergrant_server.api.http.call import ApiCall, AuditorCall
from evergrant_server.api.http.models import Slug, View, checked_scope
from evergrant_server.core.access import Action, Effect
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant, is_id
from evergrant_server.core.integrations import Integration
from evergrant_server.policy import (
    DecisionReason,
    PermitExplanation,
    PermitField,
    PermitQuestion,
    ProxiedRequest,
    Target,
    decide,
    explain,
    scopes_above,
)
from evergrant_server.policy.networks import parse_address
from evergrant_server.problems import invalid_request
from evergrant_server.store import LeaseRow, Transaction
from evergrant_server.store.access_review import AppReview, review_app, review_connection
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import DownScoping

router = APIRouter(tags=["apps"])

_MOST_SHOWN = 200  # of each list of an explanation
_USES = (Action.TOKEN, Action.PROXY)  # of the connection's token


def _scope_list(value: str) -> str:
    for scope in split_scopes(value):
        checked_scope(scope)
    return value


def split_scopes(scopes: str) -> tuple[str, ...]:
    """Scopes with a space between two of them (RFC 6749 section 3.3), without duplicates."""
    return tuple(dict.fromkeys(filter(None, scopes.split(" "))))


def _address(value: str | None) -> str | None:
    return None if value is None else str(parse_address(value))


ScopeList = Annotated[str, Query(max_length=20_000), AfterValidator(_scope_list)]


class OtherPermit(View):
    """A permit that doesn't fit: its first field that fails, and the scopes that it refuses."""

    permit: str
    effect: Effect
    field: PermitField
    scopes: tuple[str, ...]


class Obstacle(View):
    """What stops the app apart from its permits, with the code of a request that meets it."""

    code: ErrorCode
    detail: str


class AccessExplanation(View):
    """`allowed` is what the permits say. A request succeeds when `stopped_by` is empty too.

    `scopes` are those that were judged: of a lease all of the token's, without the one for refresh tokens.
    `decided_by` allowed or denied it, until `valid_until`; the other permits that fit are in
    `also_allowed_by`, `also_denied_by` and, with `mode: observe`, `observed_by`. Each list has at most 200
    members, `why_not` the nearest permits first; `omitted` counts further permits. `down_scoping` is whether
    the provider issues narrower tokens. With `refresh`, a permit that insists on exact scopes is judged by
    the requested ones, since a narrower token is leased.
    """

    app: str
    connection_id: str
    integration: str
    subject: str
    action: Action
    scopes: tuple[str, ...]
    allowed: bool
    reason: DecisionReason
    decided_by: str | None
    valid_until: datetime | None
    also_allowed_by: tuple[str, ...]
    also_denied_by: tuple[str, ...]
    observed_by: tuple[str, ...]
    why_not: tuple[OtherPermit, ...]
    omitted: int
    down_scoping: DownScoping
    stopped_by: tuple[Obstacle, ...]


@router.get("/v1/access/explain")
async def explain_access(
    call: AuditorCall,
    app: Slug,
    connection: Annotated[str, Query(max_length=100)],
    scopes: ScopeList = "",
    action: Action = Action.TOKEN,
    address: Annotated[str | None, Query(max_length=100), AfterValidator(_address)] = None,
    method: Annotated[str | None, Query(pattern="^[A-Z]{1,20}$")] = None,
    path: Annotated[str | None, Query(max_length=4000, pattern="^/")] = None,
    tool: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
) -> AccessExplanation:
    """Whether an app may use a connection now, by which permit, and why not by the others.

    `scopes` has spaces between them. `export` is judged for the whole tenant. `address` is the app's, for
    permits with `sources`; `method` and `path`, or a server's `tool`, are of a request (`action=proxy`). The
    path is percent-encoded as it is sent, and may have its query.
    """
    requested = split_scopes(scopes)
    _require_request(action, method, path, tool)
    async with call.api.store.read() as tx:
        reviewed = await review_app(tx, call.tenant, app, call.now)
        if reviewed is None:
            raise Failure(ErrorCode.NOT_FOUND, "The tenant has no app of this name.")
        explained = await explained_connection(tx, call, connection)
        if explained is None:
            raise Failure(ErrorCode.NOT_FOUND, "The tenant has no connection with this id.")
        disabled = await _tenant_failure(tx, call.tenant)
    permits = reviewed.permits
    judge = PermitJudge(call.api.registry, partial(decide, permits), call.now, address)
    proxied = ProxiedRequest.asked_about(method, path, tool, explained.method_overrides)
    question = explained.question(judge, action, requested, proxied)
    obstacles = [*obstacles_of(disabled), *_app_obstacles(reviewed, call.now)]
    obstacles += explained.obstacles(judge, action, requested)
    if action is Action.CONNECT:
        obstacles += _above_integration(scopes_above(question.scopes, explained.scope_ceiling))
    names = {"app": app, **explained.names, "action": action, "scopes": question.scopes}
    return _view(explain(permits, question), obstacles, **names)


def _require_request(action: Action, method: str | None, path: str | None, tool: str | None) -> None:
    """Raise Failure INVALID_REQUEST for half of a request: it would be judged as an unknown one."""
    if (method is None) is not (path is None):
        raise invalid_request("path" if path is None else "method", "A request has a method and a path.")
    if tool is not None and method is not None:
        raise invalid_request("tool", "tool: a request has either a tool, or a method and a path.")
    if action is not Action.PROXY and not (method is None and tool is None):
        raise invalid_request("action", "action: method, path and tool are of a request, which takes proxy.")


@dataclass(frozen=True)
class ExplainedConnection:
    """A connection as a lease sees it, and what its integration and provider say. `broken`: why its row
    doesn't count."""

    row: LeaseRow
    connection: Connection
    integration: Integration | None
    spec: ProviderSpec | None
    broken: Failure | None

    @property
    def names(self) -> dict[str, object]:
        down_scoping = "unknown" if self.spec is None else self.spec.down_scoping
        return {
            "connection_id": self.row.connection_id,
            "integration": self.row.integration,
            "subject": self.row.subject,
            "down_scoping": down_scoping,
        }

    @property
    def method_overrides(self) -> tuple[str, ...]:
        """The names by which the provider's API takes another method than a request's own."""
        api_request = None if self.spec is None else self.spec.api_request
        return () if api_request is None else api_request.method_overrides

    @property
    def scope_ceiling(self) -> tuple[str, ...] | None:
        return None if self.integration is None else self.integration.scope_ceiling

    @property
    def is_narrowable(self) -> bool:
        return is_narrowable(self.spec, self.connection.flow, self.row.grant)

    def question(
        self, judge: PermitJudge, action: Action, requested: tuple[str, ...], proxied: ProxiedRequest | None
    ) -> PermitQuestion:
        """What the lease decision asks of permits. Before the first grant a lease is judged by what the
        consent asks for."""
        row = self.row
        if action not in _USES:
            target = Target() if action is Action.EXPORT else target_of(row)
            return judge.question(action, target, without_offline(judge.registry, row.provider, requested))
        if row.grant is None:
            requested = requested or self.connection.requested_scopes
        return judge.leased_question(row, action, requested, proxied, narrowable=self.is_narrowable)

    def obstacles(self, judge: PermitJudge, action: Action, requested: tuple[str, ...]) -> Iterator[Obstacle]:
        """What stops the action apart from permits. A refresh isn't counted."""
        yield from obstacles_of(self.broken)
        if action not in _USES:
            return
        row, code = self.row, state_refusal(self.row, judge.at, refreshes=True)
        if code is not None:
            reason = "" if row.reason is None else f" ({row.reason})"
            yield Obstacle(code=code, detail=f"The connection is {row.state}{reason}.")
        if row.grant is not None and (missing := lacks(row.grant, requested)):
            detail = f"The token doesn't have: {' '.join(missing)}"
            yield Obstacle(code=ErrorCode.SCOPE_NOT_GRANTED, detail=detail)
        needs_narrower = judge.narrows and action is Action.TOKEN and judge.narrower(row, requested)
        if needs_narrower and not self.is_narrowable:
            detail = (
                "The token can do more than the requested scopes, and the provider isn't known to narrow it."
            )
            yield Obstacle(code=ErrorCode.SCOPE_NOT_PERMITTED, detail=detail)


async def explained_connection(tx: Transaction, call: ApiCall, id: str) -> ExplainedConnection | None:
    """The tenant's connection of this id, or None."""
    reviewed = await review_connection(tx, call.tenant, ConnectionId(id)) if is_id(id, "con") else None
    if reviewed is None:
        return None
    connection, broken = reviewed
    grant = await tx.grants.get(connection.tenant, connection.id)
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    spec = None if integration is None else await integration_spec(tx, call.api.registry, integration)
    return ExplainedConnection(row_of(connection, grant), connection, integration, spec, broken)


async def _tenant_failure(tx: Transaction, tenant: Tenant) -> Failure | None:
    try:
        await tx.tenants.require_enabled(tenant)
    except Failure as failure:
        return failure
    return None


def _view(explained: PermitExplanation, obstacles: Iterable[Obstacle], **asked: object) -> AccessExplanation:
    why_not = explained.why_not
    named = {
        "also_allowed_by": explained.allowed_by,
        "also_denied_by": explained.denied_by,
        "observed_by": explained.observed_by,
    }
    shown = tuple(
        OtherPermit(
            permit=mismatch.permit_name, effect=mismatch.effect, field=mismatch.field, scopes=mismatch.scopes
        )
        for mismatch in why_not[:_MOST_SHOWN]
    )
    return AccessExplanation.model_validate(
        {
            **asked,
            "allowed": explained.decision.allowed,
            "reason": explained.decision.reason,
            "decided_by": explained.decided_by,
            "valid_until": explained.valid_until,
            **{name: names[:_MOST_SHOWN] for name, names in named.items()},
            "why_not": shown,
            "omitted": sum(max(0, len(members) - _MOST_SHOWN) for members in (*named.values(), why_not)),
            "stopped_by": tuple(obstacles)[:_MOST_SHOWN],
        }
    )


# --- what else stops it -----------------------------------------------------------------


def _app_obstacles(app: AppReview, now: datetime) -> Iterator[Obstacle]:
    yield from obstacles_of(*app.broken)
    if not app.credentials and not any(key.is_live(now) for key in app.keys):
        yield Obstacle(
            code=ErrorCode.UNAUTHENTICATED, detail="The app has no live API key and no credential."
        )
    yield from obstacles_of(app.stopped)


def obstacles_of(*failures: Failure | None) -> Iterator[Obstacle]:
    for failure in failures:
        if failure is not None:
            yield Obstacle(code=failure.code, detail=failure.detail)


def _above_integration(scopes: tuple[str, ...]) -> Iterator[Obstacle]:
    if scopes:
        detail = f"Above the scope ceiling of the integration: {' '.join(scopes)}"
        yield Obstacle(code=ErrorCode.SCOPE_NOT_PERMITTED, detail=detail)
