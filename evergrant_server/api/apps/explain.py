"""`GET /v1/access/explain`: may an app use a connection, by which permit, and what else stops it now.

Judges as a lease does, and starts nothing: no refresh, no consent, no audit record.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator

from evergrant_server.access.context import integration_spec
from evergrant_server.access.narrowing import is_narrowable
from evergrant_server.api.http.call import AuditorCall
from evergrant_server.api.http.models import Slug, View, _scope
from evergrant_server.core.access import Action, Effect
from evergrant_server.core.connections.connection import Connection, LifecycleState, is_leasable
from evergrant_server.core.connections.grant import FollowUp, Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant, is_id
from evergrant_server.policy import (
    DecisionReason,
    PermitExplanation,
    PermitField,
    PermitQuestion,
    ProxiedRequest,
    Target,
    explain,
    scopes_above,
)
from evergrant_server.policy.networks import parse_address
from evergrant_server.store import Transaction
from evergrant_server.store.review.access_review import AppReview, review_app, review_connection
from providers.definition.schema_response import DownScoping

router = APIRouter(tags=["apps"])

_MOST_SHOWN = 200  # of each list of an explanation
_USES = (Action.TOKEN, Action.PROXY)  # of the connection's token
_HELD = (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)
_STATE_CODES = {
    LifecycleState.ACTIVE: ErrorCode.REFRESH_PENDING,
    LifecycleState.REVOKING: ErrorCode.CONNECTION_REVOKED,
    LifecycleState.REVOKED: ErrorCode.CONNECTION_REVOKED,
    LifecycleState.DENIED: ErrorCode.CONSENT_DENIED,
}


def _scope_list(value: str) -> str:
    for scope in _split(value):
        _scope(scope)
    return value


def _split(scopes: str) -> tuple[str, ...]:
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
    requested = _split(scopes)
    async with call.api.store.read() as tx:
        reviewed = await review_app(tx, call.tenant, app, call.now)
        if reviewed is None:
            raise Failure(ErrorCode.NOT_FOUND, "The tenant has no app of this name.")
        row, broken = await _connection(tx, call.tenant, connection)
        grant = await tx.grants.get(row.tenant, row.id)
        integration = await tx.integrations.get(row.tenant, row.integration_id)
        spec = None if integration is None else await integration_spec(tx, call.api.registry, integration)
        disabled = await _tenant_failure(tx, call.tenant)
    ceiling = integration.scope_ceiling if integration is not None and action is Action.CONNECT else None
    offline = call.api.registry.offline_scope(row.provider)
    leased = _leased_scopes(row, grant, requested) if action in _USES else requested
    judged = tuple(scope for scope in leased if scope != offline)
    excess = scopes_above(judged, requested) if action is Action.TOKEN and grant is not None else ()
    target = Target() if action is Action.EXPORT else Target.of(row)
    own = () if spec is None or spec.api_request is None else spec.api_request.method_overrides
    proxied = ProxiedRequest.asked_about(method, path, tool, own)
    aliases = call.api.registry.scope_aliases(row.provider)
    question = PermitQuestion(target, action, call.now, address, judged, excess, proxied, aliases)
    explained = explain(reviewed.permits, question)
    above = explained.decision.reason is DecisionReason.TOKEN_ABOVE_REQUEST
    if above and is_narrowable(spec, row.flow, grant):
        judged = tuple(scope for scope in requested if scope != offline)
        explained = explain(reviewed.permits, question._replace(scopes=judged, excess=()))
    obstacles = [*_broken(disabled), *_app_obstacles(reviewed, call.now), *_broken(broken)]
    if action in _USES:
        obstacles += _lease_obstacles(row, grant, requested, call.now)
    obstacles += _above_integration(scopes_above(judged, ceiling))
    names = {"app": app, "connection_id": row.id, "integration": row.integration, "subject": row.subject}
    names["down_scoping"] = "unknown" if spec is None else spec.down_scoping
    return _view(explained, obstacles, **names, action=action, scopes=judged)


async def _connection(tx: Transaction, tenant: Tenant, id: str) -> tuple[Connection, Failure | None]:
    found = await review_connection(tx, tenant, ConnectionId(id)) if is_id(id, "con") else None
    if found is None:
        raise Failure(ErrorCode.NOT_FOUND, "The tenant has no connection with this id.")
    return found


async def _tenant_failure(tx: Transaction, tenant: Tenant) -> Failure | None:
    try:
        await tx.tenants.require_enabled(tenant)
    except Failure as failure:
        return failure
    return None


def _leased_scopes(row: Connection, grant: Grant | None, requested: tuple[str, ...]) -> tuple[str, ...]:
    """The scopes that a lease is judged by: all of the token's, or the requested ones if it lacks one."""
    if grant is None:
        return requested or row.requested_scopes
    return requested if scopes_above(requested, grant.scopes) else grant.scopes


def _view(explained: PermitExplanation, obstacles: Iterable[Obstacle], **asked: object) -> AccessExplanation:
    why_not = explained.why_not
    named = {
        "also_allowed_by": explained.allowed_by,
        "also_denied_by": explained.denied_by,
        "observed_by": explained.observed_by,
    }
    shown = tuple(
        OtherPermit(permit=it.permit_name, effect=it.effect, field=it.field, scopes=it.scopes)
        for it in why_not[:_MOST_SHOWN]
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
            "omitted": sum(max(0, len(it) - _MOST_SHOWN) for it in (*named.values(), why_not)),
            "stopped_by": tuple(obstacles)[:_MOST_SHOWN],
        }
    )


# --- what else stops it -----------------------------------------------------------------


def _app_obstacles(app: AppReview, now: datetime) -> Iterator[Obstacle]:
    yield from _broken(*app.broken)
    if not app.credentials and not any(key.is_live(now) for key in app.keys):
        yield Obstacle(
            code=ErrorCode.UNAUTHENTICATED, detail="The app has no live API key and no credential."
        )
    yield from _broken(app.stopped)


def _broken(*failures: Failure | None) -> Iterator[Obstacle]:
    for failure in failures:
        if failure is not None:
            yield Obstacle(code=failure.code, detail=failure.detail)


def _lease_obstacles(
    row: Connection, grant: Grant | None, requested: tuple[str, ...], now: datetime
) -> Iterator[Obstacle]:
    code = _state_code(row, grant, now)
    if code is not None:
        reason = "" if row.reason is None else f" ({row.reason})"
        yield Obstacle(code=code, detail=f"The connection is {row.state}{reason}.")
    if grant is not None and (missing := scopes_above(requested, grant.scopes)):
        detail = f"The token doesn't have: {' '.join(missing)}"
        yield Obstacle(code=ErrorCode.SCOPE_NOT_GRANTED, detail=detail)


def _state_code(row: Connection, grant: Grant | None, now: datetime) -> ErrorCode | None:
    """The code with which a lease would be refused for the connection's state. A refresh isn't counted."""
    reported = row.reported_generation == row.generation
    if is_leasable(row.state, row.reason, row.follow_up, reported=reported):
        is_over = grant is None or not grant.is_valid(now)
        return ErrorCode.CONSENT_REQUIRED if is_over and row.state is LifecycleState.NEEDS_REAUTH else None
    if row.follow_up is FollowUp.CHOOSING and row.state in _HELD:
        return ErrorCode.CHOICE_REQUIRED
    return _STATE_CODES.get(row.state, ErrorCode.CONSENT_REQUIRED)


def _above_integration(scopes: tuple[str, ...]) -> Iterator[Obstacle]:
    if scopes:
        detail = f"Above the scope ceiling of the integration: {' '.join(scopes)}"
        yield Obstacle(code=ErrorCode.SCOPE_NOT_PERMITTED, detail=detail)
