"""Why no lease leaves: the failure that says who must act, a connect link where one helps, the record."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.api.authentication import Caller
from evergrant_server.api.establishing import Establishing, Wanted
from evergrant_server.api.parts import Parts
from evergrant_server.api.proving import ProofWanted
from evergrant_server.api.shapes import LeaseBody, TokenBody
from evergrant_server.api.transactions import committed
from evergrant_server.core.access import Action
from evergrant_server.core.account import FollowUp
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import ConnectionId, is_id
from evergrant_server.core.messages import Asked
from evergrant_server.policy import decide
from evergrant_server.store import LeaseRow


@dataclass(frozen=True)
class Ask:
    """One request for a lease: by names, or by connection id; or for a signature, of what `signs` says."""

    body: TokenBody
    names: LeaseBody | None
    connection_id: ConnectionId | None
    proof: ProofWanted | None = None  # not the token: a proof for one request with it
    signs: str = ""

    @property
    def min_ttl(self) -> timedelta | None:
        return None if self.body.min_ttl is None else timedelta(seconds=self.body.min_ttl)


class Refusals:
    """Makes and records refusals. Never asked on behalf of a caller from memory."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def not_leasable(self, caller: Caller, ask: Ask, row: LeaseRow, asked: Asked) -> Failure:
        """Why this connection gives no token."""
        if row.follow_up is FollowUp.CHOOSING and row.state in (State.ACTIVE, State.NEEDS_REAUTH):
            return Failure(Code.CHOICE_REQUIRED, connection_id=row.connection_id)
        match row.state:
            case State.REVOKING | State.REVOKED:
                return Failure(Code.CONNECTION_REVOKED, connection_id=row.connection_id)
            case State.DENIED:
                return Failure(Code.CONSENT_DENIED, connection_id=row.connection_id)
            case State.ACTIVE:
                return Failure(Code.REFRESH_PENDING, retry_after=1.0, connection_id=row.connection_id)
            case _:
                wanted = Wanted(row.integration, row.subject, row.label, ask.body.scopes, leasing=True)
                needed = await self._consent_required(caller, wanted, asked, row.connection_id)
                if row.reason is Code.GRANT_REVOKED_ELSEWHERE:
                    needed.context["reason"] = row.reason.value
                return needed

    async def nothing_there(self, caller: Caller, ask: Ask, asked: Asked) -> Failure:
        """Absent: begin it for an app that may connect; for any other it just isn't there."""
        if ask.names is None:
            return Failure(Code.NOT_FOUND)
        it = ask.names
        if not all(
            decide(caller.permits, integration=it.integration, subject=it.subject, action=action).allowed
            for action in (Action.TOKEN, Action.CONNECT)
        ):
            return Failure(Code.NOT_FOUND)
        wanted = Wanted(it.integration, it.subject, it.label, it.scopes, leasing=True)
        return await self._consent_required(caller, wanted, asked, None)

    async def _consent_required(
        self, caller: Caller, wanted: Wanted, asked: Asked, connection_id: ConnectionId | None
    ) -> Failure:
        needed = Failure(Code.CONSENT_REQUIRED)
        if connection_id is not None:
            needed.context["connection_id"] = connection_id
        may_connect = decide(
            caller.permits, integration=wanted.integration, subject=wanted.subject, action=Action.CONNECT
        )
        if not may_connect.allowed:
            return needed
        establishing = Establishing(self._parts, caller, asked)
        try:
            opened = await committed(self._parts.store, lambda tx: establishing.connect(tx, wanted))
        except Failure as failure:
            if failure.code is not Code.CONSENT_EXPIRED:
                return failure
            needed.retry_after = 5.0  # an unanswered consent is just being closed: no link for a moment
            return needed
        self._parts.relay.nudge()
        if opened.connection.flow.mints:  # nobody has to consent: it is only not there yet
            return Failure(Code.REFRESH_PENDING, retry_after=1.0, connection_id=opened.connection.id)
        needed.context["connection_id"] = opened.connection.id
        if opened.url is not None and opened.consent is not None:
            needed.context["connect_url"] = opened.url
            needed.context["expires_at"] = opened.consent.expires_at.isoformat()
        return needed

    async def record(self, caller: Caller, ask: Ask, asked: Asked, failure: Failure) -> None:
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
            asked=asked,
            detail=detail,
        )
        with suppress(Failure):  # the refusal stands, whatever the log can say about it
            async with self._parts.store.write() as tx:
                await audit.append(tx, entry)
