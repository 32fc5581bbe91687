"""Refused leases: the failure, with a connect link where a consent helps, and its audit record."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.api.connections.create import ConnectionSetup
from evergrant_server.api.connections.reauthorization import ConnectionRequest
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.api.leases.dpop import ProofRequest
from evergrant_server.api.leases.models import LeaseBody, TokenBody
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, is_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.policy import decide
from evergrant_server.store import LeaseRow


@dataclass(frozen=True)
class LeaseRequest:
    """A request for a lease by names or connection id, or for a proof or a signature made with its token."""

    body: TokenBody
    names: LeaseBody | None
    connection_id: ConnectionId | None
    proof: ProofRequest | None = None  # a DPoP proof for one request, instead of the token
    signs: str = ""

    @property
    def min_ttl(self) -> timedelta | None:
        return None if self.body.min_ttl is None else timedelta(seconds=self.body.min_ttl)


class LeaseRefusals:
    """Makes and records refusals, for callers that were read from the store."""

    def __init__(self, api: ApiContext) -> None:
        self._api = api

    async def not_leasable(
        self, caller: Caller, lease_request: LeaseRequest, row: LeaseRow, context: RequestContext
    ) -> Failure:
        """The failure for a connection without a leasable token."""
        if row.follow_up is FollowUp.CHOOSING and row.state in (
            LifecycleState.ACTIVE,
            LifecycleState.NEEDS_REAUTH,
        ):
            return Failure(ErrorCode.CHOICE_REQUIRED, connection_id=row.connection_id)
        match row.state:
            case LifecycleState.REVOKING | LifecycleState.REVOKED:
                return Failure(ErrorCode.CONNECTION_REVOKED, connection_id=row.connection_id)
            case LifecycleState.DENIED:
                return Failure(ErrorCode.CONSENT_DENIED, connection_id=row.connection_id)
            case LifecycleState.ACTIVE:
                return Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0, connection_id=row.connection_id)
            case _:
                wanted = ConnectionRequest(
                    row.integration, row.subject, row.label, lease_request.body.scopes, for_lease=True
                )
                needed = await self._consent_required(caller, wanted, context, row.connection_id)
                if row.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE:
                    needed.context["reason"] = row.reason.value
                return needed

    async def absent(self, caller: Caller, lease_request: LeaseRequest, context: RequestContext) -> Failure:
        """The failure for a missing connection. For an app that may connect, the connection is created."""
        if lease_request.names is None:
            return Failure(ErrorCode.NOT_FOUND)
        names = lease_request.names
        if not all(
            decide(
                caller.permits, integration=names.integration, subject=names.subject, action=action
            ).allowed
            for action in (Action.TOKEN, Action.CONNECT)
        ):
            return Failure(ErrorCode.NOT_FOUND)
        wanted = ConnectionRequest(
            names.integration, names.subject, names.label, names.scopes, for_lease=True
        )
        return await self._consent_required(caller, wanted, context, None)

    async def _consent_required(
        self,
        caller: Caller,
        wanted: ConnectionRequest,
        context: RequestContext,
        connection_id: ConnectionId | None,
    ) -> Failure:
        needed = Failure(ErrorCode.CONSENT_REQUIRED)
        if connection_id is not None:
            needed.context["connection_id"] = connection_id
        may_connect = decide(
            caller.permits, integration=wanted.integration, subject=wanted.subject, action=Action.CONNECT
        )
        if not may_connect.allowed:
            return needed
        setup = ConnectionSetup(self._api, caller, context)
        try:
            opened = await run_transaction(self._api.store, lambda tx: setup.find_or_create(tx, wanted))
        except Failure as failure:
            if failure.code is not ErrorCode.CONSENT_EXPIRED:
                return failure
            needed.retry_after = 5.0  # an expired consent is being closed: a new link is possible in a moment
            return needed
        self._api.relay.notify()
        if opened.connection.flow.is_client_grant:  # no consent is needed: its first token is on the way
            return Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0, connection_id=opened.connection.id)
        needed.context["connection_id"] = opened.connection.id
        if opened.connect_url is not None and opened.consent is not None:
            needed.context["connect_url"] = opened.connect_url
            needed.context["expires_at"] = opened.consent.expires_at.isoformat()
        return needed

    async def record(
        self, caller: Caller, lease_request: LeaseRequest, context: RequestContext, failure: Failure
    ) -> None:
        """Record the refusal, best effort: no token left, so no record is required."""
        connection_id = failure.context.get("connection_id") or lease_request.connection_id or ""
        detail: dict[str, object] = {"app": caller.app.id, "code": failure.code.value}
        if lease_request.names is not None:
            detail["integration"] = lease_request.names.integration
        entry = AuditEntry(
            tenant=caller.tenant,
            at=self._api.clock.now(),
            action=AuditAction.LEASE_REFUSED,
            object=connection_id if is_id(connection_id, "con") else caller.app.id,
            context=context,
            detail=detail,
        )
        with suppress(Failure):  # it is refused even if that can't be recorded
            async with self._api.store.write() as tx:
                await audit.append(tx, entry)
