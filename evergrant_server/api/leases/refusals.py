"""Refused leases: the failure, with a connect link where a consent helps, and its audit record."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from evergrant_server.api.connections.create import ConnectionSetup
from evergrant_server.api.connections.models import ConnectionBody
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.http.problems import invalid_request
from evergrant_server.api.leases.models import LeaseBody, ProofBody, TokenBody
from evergrant_server.api.leases.refresher import RefreshWaitResult
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.credentials import OAUTH1
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import AppId, ConnectionId, Tenant, is_id
from evergrant_server.crypto import KeyPurpose
from evergrant_server.policy import PermitDecision, ProxiedRequest, Target
from evergrant_server.store import LeaseRow


@dataclass(frozen=True)
class ProxiedCall:
    """A request to the provider's API that the gateway makes. `judged` is what permits judge, when its
    connection is known. `prepare` raises the Failure of one that can't be sent, before it is recorded; `line`
    and the names in its `query` are for the audit log. `through`: the Envoy that sends it instead.
    """

    id: str
    line: str
    query: tuple[str, ...]
    judged: Callable[[LeaseRow], Awaitable[ProxiedRequest]]
    prepare: Callable[[LeaseRow, PermitDecision], Awaitable[None]]
    through: AppId | None = None

    @property
    def recorded(self) -> dict[str, object]:
        """What the audit log has of it."""
        query: dict[str, object] = {"query": list(self.query)} if self.query else {}
        return {"request": self.line, **query}


@dataclass(frozen=True)
class LeaseRequest:
    """A request for a lease by names or connection id, or for a proof, a signature or a proxied request made
    with its token."""

    body: TokenBody
    connection_id: ConnectionId | None = None
    proof: ProofBody | None = None  # a DPoP proof for one request, instead of the token
    signs: str = ""
    proxied: ProxiedCall | None = None
    judged: ProxiedRequest | None = None  # of `proxied`, once its connection is known

    @property
    def names(self) -> LeaseBody | None:
        return self.body if isinstance(self.body, LeaseBody) else None

    def cache_key(self, tenant: Tenant) -> tuple[str, ...]:
        """What a cached row is found by."""
        if self.names is not None:
            return (tenant, self.names.integration, self.names.subject, self.names.label)
        assert self.connection_id is not None
        return (tenant, self.connection_id)

    @property
    def action(self) -> Action:
        """What a permit has to allow."""
        return Action.TOKEN if self.proxied is None else Action.PROXY

    @property
    def min_ttl(self) -> timedelta | None:
        return None if self.body.min_ttl is None else timedelta(seconds=self.body.min_ttl)


async def not_leasable(call: ApiCall, lease_request: LeaseRequest, row: LeaseRow) -> Failure:
    """The failure for a connection without a leasable token."""
    id = row.connection_id
    if row.follow_up is FollowUp.CHOOSING and row.state in (
        LifecycleState.ACTIVE,
        LifecycleState.NEEDS_REAUTH,
    ):
        return Failure(ErrorCode.CHOICE_REQUIRED, connection_id=id)
    match row.state:
        case LifecycleState.REVOKING | LifecycleState.REVOKED:
            return Failure(ErrorCode.CONNECTION_REVOKED, connection_id=id)
        case LifecycleState.DENIED:
            return Failure(ErrorCode.CONSENT_DENIED, connection_id=id)
        case LifecycleState.ACTIVE:
            return Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0, connection_id=id)
        case _:
            needed = Failure(ErrorCode.CONSENT_REQUIRED)
            needed = await _with_link(needed, call, _wanted(lease_request, row), target_of(row))
            if row.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE:
                needed.context["reason"] = row.reason.value
            return needed


async def scope_not_granted(
    call: ApiCall, lease_request: LeaseRequest, row: LeaseRow, missing: tuple[str, ...]
) -> Failure:
    """The failure for a token that lacks a requested scope (RFC 6750 section 3.1, `insufficient_scope`).

    Its link asks the subject for the connection's scopes and these. The grant is leased on meanwhile.
    """
    needed = Failure(ErrorCode.SCOPE_NOT_GRANTED, scopes=" ".join(missing))
    return await _with_link(needed, call, _wanted(lease_request, row), target_of(row))


def require_kind(lease_request: LeaseRequest, row: LeaseRow) -> None:
    """An OAuth 1.0a token signs requests and never leaves; no other token signs."""
    if row.grant is None:
        return
    signs = row.grant.token_type == OAUTH1
    if signs and not lease_request.signs:
        raise Failure(ErrorCode.SIGNATURE_NEEDED, connection_id=row.connection_id)
    if lease_request.signs and not signs:
        raise invalid_request("url", "Its requests are not signed: lease its token.")


async def absent(call: ApiCall, lease_request: LeaseRequest) -> Failure:
    """The failure for a missing connection. For an app that may connect, the connection is created."""
    names = lease_request.names
    if names is None:
        return Failure(ErrorCode.NOT_FOUND)
    target = (await call.integration_target(names.integration))._replace(subject=names.subject)
    if not (call.allows(Action.TOKEN, target) and call.allows(Action.CONNECT, target)):
        return Failure(ErrorCode.NOT_FOUND)
    wanted = ConnectionBody(**names.model_dump(exclude={"min_ttl", "exact", "www_authenticate"}))
    return await _with_link(Failure(ErrorCode.CONSENT_REQUIRED), call, wanted, target)


def target_of(row: LeaseRow) -> Target:
    return Target(row.integration, row.provider, row.subject, row.connection_id)


def _wanted(lease_request: LeaseRequest, row: LeaseRow) -> ConnectionBody:
    """The consent that a lease needs. The names of a row were checked when it was created."""
    return ConnectionBody.model_construct(
        integration=row.integration,
        subject=row.subject,
        label=row.label,
        scopes=lease_request.body.scopes,
        challenge=None if lease_request.names is None else lease_request.names.challenge,
    )


async def _with_link(needed: Failure, call: ApiCall, wanted: ConnectionBody, target: Target) -> Failure:
    """The failure, with the link of an open or new consent if the app may connect the subject."""
    if target.connection_id is not None:
        needed.context["connection_id"] = target.connection_id
    may_link = call.api.ring.holds(KeyPurpose.INTAKE)  # the gateway can't: POST /v1/connections makes one
    if not may_link or not call.allows(Action.CONNECT, target):
        return needed
    step_up = needed.code is ErrorCode.SCOPE_NOT_GRANTED
    setup = ConnectionSetup(call, for_lease=True, step_up=step_up)
    try:
        opened = await call.write(lambda tx: setup.find_or_create(tx, wanted))
    except Failure as failure:
        return with_turn(needed, failure)
    active = opened.connection.state is LifecycleState.ACTIVE  # its grant has come since the row was read
    if (active or opened.connection.flow.is_client_grant) and not step_up:  # no consent is needed
        return Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0, connection_id=opened.connection.id)
    needed.context["connection_id"] = opened.connection.id
    if opened.connect_url is not None and opened.consent is not None:
        needed.context["connect_url"] = opened.connect_url
        needed.context["expires_at"] = opened.consent.expires_at.isoformat()
    return needed


def with_turn(needed: Failure, failure: Failure) -> Failure:
    """Why there is no link: of a connection that another app made, `needed` with whose turn it is."""
    if failure.code is not ErrorCode.MADE_BY_ANOTHER_APP:
        return failure
    turn = Failure(needed.code, failure.detail, repair=failure.repair)
    turn.context |= needed.context
    return turn


def refresh_refused(result: RefreshWaitResult, row: LeaseRow) -> Failure:
    """The failure for a token that no refresh has replaced."""
    failure = result.failure or Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0)
    if failure.kind is FailureKind.RECONNECT_NEEDED:  # the next lease says so from the store, with a link
        return Failure(failure.code, connection_id=row.connection_id)
    return Failure(
        failure.code, failure.detail, retry_after=failure.retry_after, connection_id=row.connection_id
    )


def refusal_entry(call: ApiCall, lease_request: LeaseRequest, failure: Failure) -> AuditEntry:
    """The audit record of a refusal."""
    connection_id = failure.context.get("connection_id") or lease_request.connection_id or ""
    app_id = call.caller.app.id
    detail: dict[str, object] = {"app": app_id, "code": failure.code.value}
    if call.caller.delegated is not None:
        detail["acts_for"] = call.caller.delegated.use.recorded
    if lease_request.proxied is not None:
        detail |= lease_request.proxied.recorded
    if lease_request.names is not None:
        detail["integration"] = lease_request.names.integration
    object_id = connection_id if is_id(connection_id, "con") else app_id
    return AuditEntry(
        tenant=call.tenant,
        at=call.now,
        action=AuditAction.LEASE_REFUSED,
        object=object_id,
        context=call.context,
        detail=detail,
    )
