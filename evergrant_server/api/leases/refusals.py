"""Why no lease leaves: the failure that says who must act, a connect link where one helps, the record."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.api.connections.create import ConnectionRequest, ConnectionSetup
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.requests import LeaseBody, TokenBody
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.api.leases.dpop import ProofRequest
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.account import FollowUp
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, is_id
from evergrant_server.core.messages.connection import RequestContext
from evergrant_server.policy import decide
from evergrant_server.store import LeaseRow


@dataclass(frozen=True)
class LeaseRequest:
    """One request for a lease: by names, or by connection id; or for a signature, of what `signs` says."""

    body: TokenBody
    names: LeaseBody | None
    connection_id: ConnectionId | None
    proof: ProofRequest | None = None  # not the token: a proof for one request with it
    signs: str = ""

    @property
    def min_ttl(self) -> timedelta | None:
        return None if self.body.min_ttl is None else timedelta(seconds=self.body.min_ttl)


class LeaseRefusals:
    """Makes and records refusals. Never asked on behalf of a caller from memory."""

    def __init__(self, parts: ApiContext) -> None:
        self._parts = parts

    async def not_leasable(
        self, caller: Caller, ask: LeaseRequest, row: LeaseRow, asked: RequestContext
    ) -> Failure:
        """Why this connection gives no token."""
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
                    row.integration, row.subject, row.label, ask.body.scopes, for_lease=True
                )
                needed = await self._consent_required(caller, wanted, asked, row.connection_id)
                if row.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE:
                    needed.context["reason"] = row.reason.value
                return needed

    async def absent(self, caller: Caller, ask: LeaseRequest, asked: RequestContext) -> Failure:
        """Absent: begin it for an app that may connect; for any other it just isn't there."""
        if ask.names is None:
            return Failure(ErrorCode.NOT_FOUND)
        it = ask.names
        if not all(
            decide(caller.permits, integration=it.integration, subject=it.subject, action=action).allowed
            for action in (Action.TOKEN, Action.CONNECT)
        ):
            return Failure(ErrorCode.NOT_FOUND)
        wanted = ConnectionRequest(it.integration, it.subject, it.label, it.scopes, for_lease=True)
        return await self._consent_required(caller, wanted, asked, None)

    async def _consent_required(
        self,
        caller: Caller,
        wanted: ConnectionRequest,
        asked: RequestContext,
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
        establishing = ConnectionSetup(self._parts, caller, asked)
        try:
            opened = await run_transaction(
                self._parts.store, lambda tx: establishing.find_or_create(tx, wanted)
            )
        except Failure as failure:
            if failure.code is not ErrorCode.CONSENT_EXPIRED:
                return failure
            needed.retry_after = 5.0  # an unanswered consent is just being closed: no link for a moment
            return needed
        self._parts.relay.notify()
        if opened.connection.flow.is_client_grant:  # nobody has to consent: it is only not there yet
            return Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0, connection_id=opened.connection.id)
        needed.context["connection_id"] = opened.connection.id
        if opened.connect_url is not None and opened.consent is not None:
            needed.context["connect_url"] = opened.connect_url
            needed.context["expires_at"] = opened.consent.expires_at.isoformat()
        return needed

    async def record(
        self, caller: Caller, ask: LeaseRequest, asked: RequestContext, failure: Failure
    ) -> None:
        """Put the refusal into the log, best effort: it hands out nothing, so it needs no proof."""
        what = failure.context.get("connection_id") or ask.connection_id or ""
        detail: dict[str, object] = {"app": caller.app.id, "code": failure.code.value}
        if ask.names is not None:
            detail["integration"] = ask.names.integration
        entry = AuditEntry(
            tenant=caller.tenant,
            at=self._parts.clock.now(),
            action=AuditAction.LEASE_REFUSED,
            object=what if is_id(what, "con") else caller.app.id,
            context=asked,
            detail=detail,
        )
        with suppress(Failure):  # the refusal stands, whatever the log can say about it
            async with self._parts.store.write() as tx:
                await audit.append(tx, entry)
