"""A request for a lease, and its refusal: the failure, with a link where a consent helps, and its record."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from posixpath import normpath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from evergrant_server.access.context import ApiContext, integration_spec
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.judgement import state_refusal, target_of
from evergrant_server.access.refreshes import RefreshWaitResult
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE, OAUTH1
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import AppId, ConnectionId, Tenant, is_id
from evergrant_server.core.integrations import Endpoints
from evergrant_server.crypto import KeyPurpose
from evergrant_server.policy import PermitDecision, ProxiedRequest, Target
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import LeaseRow
from providers.definition.templates import integration_endpoints
from providers.requests.dpop import origin_of

_RESOURCES = ("userinfo_endpoint",)  # protected ones (OpenID Connect Core 1.0 section 5.3)


class ConnectionNames(NamedTuple):
    """The names by which an app finds a connection."""

    integration: str
    subject: str
    label: str


class ProvedRequest(NamedTuple):
    """The request that a DPoP proof is for (RFC 9449 section 4.2): its URL has neither query nor fragment."""

    method: str
    url: str


class WantedConsent(NamedTuple):
    """A consent that would help: to these scopes, or to those that are asked for without any. `step_up`: to
    further scopes of an active connection. `challenge` is the connect link's."""

    names: ConnectionNames
    scopes: tuple[str, ...] | None
    challenge: str | None = None
    step_up: bool = False


class OfferedConsent(NamedTuple):
    """A connection, with a link where its subject has to consent."""

    connection: Connection
    connect_url: str | None
    expires_at: datetime | None


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

    connection_id: ConnectionId | None = None
    names: ConnectionNames | None = None
    scopes: tuple[str, ...] | None = None
    exact: bool = False  # the token may do no more than `scopes`
    min_ttl: timedelta | None = None
    challenge: str | None = None  # of the connect link, should the subject have to consent
    proof: ProvedRequest | None = None  # a DPoP proof for one request, instead of the token
    signs: str = ""
    proxied: ProxiedCall | None = None
    judged: ProxiedRequest | None = None  # of `proxied`, once its connection is known

    def cache_key(self, tenant: Tenant) -> tuple[str, ...]:
        """What a cached row is found by."""
        if self.names is not None:
            return (tenant, *self.names)
        assert self.connection_id is not None
        return (tenant, self.connection_id)

    @property
    def action(self) -> Action:
        """What a permit has to allow."""
        return Action.TOKEN if self.proxied is None else Action.PROXY


async def not_leasable(call: JudgedRequest, lease_request: LeaseRequest, row: LeaseRow) -> Failure:
    """The failure for a connection without a leasable token."""
    code = state_refusal(row, call.now) or ErrorCode.REFRESH_PENDING
    if code is ErrorCode.REFRESH_PENDING:
        return Failure(code, retry_after=1.0, connection_id=row.connection_id)
    if code is not ErrorCode.CONSENT_REQUIRED:
        return Failure(code, connection_id=row.connection_id)
    needed = await _with_link(Failure(code), call, _wanted(lease_request, row), target_of(row))
    if row.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE or row.reason is ErrorCode.RECONSENT_REQUIRED:
        needed.context["reason"] = row.reason.value
    return needed


async def scope_not_granted(
    call: JudgedRequest, lease_request: LeaseRequest, row: LeaseRow, missing: tuple[str, ...]
) -> Failure:
    """The failure for a token that lacks a requested scope (RFC 6750 section 3.1, `insufficient_scope`).

    Its link asks the subject for the connection's scopes and these. The grant is leased on meanwhile.
    """
    needed = Failure(ErrorCode.SCOPE_NOT_GRANTED, scopes=" ".join(missing))
    return await _with_link(needed, call, _wanted(lease_request, row, step_up=True), target_of(row))


def require_kind(lease_request: LeaseRequest, row: LeaseRow) -> None:
    """An OAuth 1.0a token signs requests and never leaves; no other token signs."""
    if row.grant is None:
        return
    signs = row.grant.token_type == OAUTH1
    if signs and not lease_request.signs:
        raise Failure(ErrorCode.SIGNATURE_NEEDED, connection_id=row.connection_id)
    if lease_request.signs and not signs:
        raise invalid_request("url", "Its requests are not signed: lease its token.")


async def absent(call: JudgedRequest, lease_request: LeaseRequest) -> Failure:
    """The failure for a missing connection. For an app that may connect, the connection is created."""
    names = lease_request.names
    if names is None:
        return Failure(ErrorCode.NOT_FOUND)
    target = (await call.integration_target(names.integration))._replace(subject=names.subject)
    if not (call.allows(Action.TOKEN, target) and call.allows(Action.CONNECT, target)):
        return Failure(ErrorCode.NOT_FOUND)
    wanted = WantedConsent(names, lease_request.scopes, lease_request.challenge)
    return await _with_link(Failure(ErrorCode.CONSENT_REQUIRED), call, wanted, target)


def names_of(row: LeaseRow) -> ConnectionNames:
    return ConnectionNames(row.integration, row.subject, row.label)


def _wanted(lease_request: LeaseRequest, row: LeaseRow, *, step_up: bool = False) -> WantedConsent:
    """The consent that a lease needs."""
    return WantedConsent(names_of(row), lease_request.scopes, lease_request.challenge, step_up)


async def _with_link(needed: Failure, call: JudgedRequest, wanted: WantedConsent, target: Target) -> Failure:
    """The failure, with the link of an open or new consent if the app may connect the subject."""
    if target.connection_id is not None:
        needed.context["connection_id"] = target.connection_id
    may_link = call.api.ring.holds(KeyPurpose.INTAKE)  # the gateway can't: POST /v1/connections makes one
    if not may_link or not call.allows(Action.CONNECT, target):
        return needed
    try:
        offered = await call.api.offer_consent(call, wanted)
    except Failure as failure:
        return with_turn(needed, failure)
    connection = offered.connection
    active = connection.state is LifecycleState.ACTIVE  # its grant has come since the row was read
    if (active or connection.flow.is_client_grant) and not wanted.step_up:  # no consent is needed
        return Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0, connection_id=connection.id)
    needed.context["connection_id"] = connection.id
    add_link(needed, offered)
    return needed


def add_link(needed: Failure, offered: OfferedConsent) -> None:
    """Have the failure name the connect link, if there is one."""
    if offered.connect_url is not None and offered.expires_at is not None:
        needed.context["connect_url"] = offered.connect_url
        needed.context["expires_at"] = offered.expires_at.isoformat()


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
    context = {**failure.context, "connection_id": row.connection_id}
    return Failure(failure.code, failure.detail, retry_after=failure.retry_after, **context)


def refusal_entry(call: JudgedRequest, lease_request: LeaseRequest, failure: Failure) -> AuditEntry:
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


async def require_provable(api: ApiContext, row: LeaseRow, proof: ProvedRequest) -> None:
    """Raise Failure INVALID_REQUEST for an unbound token or an endpoint of the authorization server."""
    if row.grant is None or row.grant.token_type != DPOP_TOKEN_TYPE:
        raise invalid_request("connection_id", "Its tokens are not bound to a key.")
    async with api.store.read() as tx:
        integration = require_found(await tx.integrations.get(row.tenant, row.integration_id))
        spec = await integration_spec(tx, api.registry, integration)
    endpoints = integration_endpoints(spec, integration, row.grant.metadata)
    if comparable_location(proof.url) in {comparable_location(url) for url in _endpoint_urls(endpoints)}:
        detail = "No proof is created for an endpoint of the provider's authorization server."
        raise invalid_request("htu", detail)


def _endpoint_urls(endpoints: Endpoints) -> Iterator[str]:
    yield from endpoints.mtls_aliases.values()
    for name, value in endpoints:
        if name.endswith("_endpoint") and name not in _RESOURCES and isinstance(value, str):
            yield value


def comparable_location(url: str) -> tuple[str, str, str]:
    """Host, port and path, normalized as the most lenient server would compare them."""
    parts, port = urlsplit(url), origin_of(url).rpartition(":")[2]
    path = normpath("/" + unquote(unquote(parts.path)).lstrip("/"))
    return (parts.hostname or "").rstrip("."), port, path.casefold()
