"""A request as the caller's permits judge it, and what the audit log has of it."""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext
from evergrant_server.access.judgement import NO_PERMIT, PermitJudge
from evergrant_server.access.people import login_url
from evergrant_server.access.transactions import ATTEMPTS, run_rolled_back, run_transaction
from evergrant_server.core.access import READING_ACTIONS, Action, AuthenticationMethod
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, KeyId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.people.sessions import SessionKind
from evergrant_server.policy import (
    DecisionReason,
    PermitDecision,
    PermitQuestion,
    ProxiedRequest,
    Target,
    decide,
    decide_delegated,
    may_see,
    may_see_delegated,
)
from evergrant_server.policy.networks import caller_address
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.traces import trace_of

T = TypeVar("T")

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,4})(?=$|[,;\s])", re.IGNORECASE)


@dataclass(frozen=True)
class DryRun:
    """A change that is judged and written as any other one, and then rolled back. Headers of the `response`
    say what the answer can't: which secrets are others than the stored ones, and that a person approves."""

    response: Response

    def note_secrets(self, changed: Mapping[str, bool]) -> None:
        """Name the fields of secrets that would change."""
        for name, is_changed in changed.items():
            if is_changed:
                self.response.headers.append("Evergrant-Changed-Secret", name)

    def note_approval(self) -> None:
        self.response.headers["Evergrant-Needs-Approval"] = "true"


@dataclass(frozen=True)
class JudgedRequest:
    """A request of an authenticated app. `observed` collects the permits that would have denied it if their
    mode were `enforce`. `managed_by` names the set of configuration files that a change comes from."""

    api: ApiContext
    caller: Caller
    context: RequestContext
    request: Request
    observed: set[str] = field(default_factory=set[str], compare=False, kw_only=True)
    dry_run: DryRun | None = field(default=None, compare=False, kw_only=True)
    managed_by: str | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, api: ApiContext, request: Request, caller: Caller) -> Self:
        """The request of this caller, recorded with its trace id."""
        return cls(api, caller, trace_of(request).request_context(caller.by), request)

    @property
    def tenant(self) -> Tenant:
        return self.caller.tenant

    @property
    def now(self) -> datetime:
        return self.api.clock.now()

    @property
    def address(self) -> str | None:
        """The caller's address, read only where a permit asks for it; None: not known."""
        return self.known_address if self.caller.names_sources else None

    @property
    def known_address(self) -> str | None:
        client = self.request.client
        forwarded = self.request.headers.getlist("x-forwarded-for")
        return caller_address(client and client.host, forwarded, self.api.settings.trusted_proxies)

    @property
    def patience_s(self) -> float | None:
        """For how long the caller waits at most: the preference `wait` (RFC 7240 section 4.3), in seconds."""
        match = _WAIT.search(self.request.headers.get("prefer", ""))
        return None if match is None else float(match[1])

    def judge(
        self,
        action: Action,
        target: Target,
        scopes: tuple[str, ...] = (),
        excess: tuple[str, ...] = (),
        proxied: ProxiedRequest | None = None,
    ) -> PermitDecision:
        """What the caller's permits say now."""
        judge = self.permit_judge
        return judge.decide(judge.question(action, target, scopes, excess, proxied))

    @property
    def permit_judge(self) -> PermitJudge:
        """What judges the caller now."""
        delegated = self.caller.delegated
        narrows = delegated is not None and delegated.narrows
        return PermitJudge(self.api.registry, self.decide, self.now, self.address, narrows)

    def decide(self, question: PermitQuestion) -> PermitDecision:
        """What the caller's permits say of a question; of a gateway's client, what its subject authorized."""
        if not _is_authorized(self.caller, question.target):
            return NO_PERMIT
        delegated = self.caller.delegated
        if delegated is None:
            return decide(self.caller.permits, question)
        return decide_delegated(delegated.links, question)

    def allows(self, action: Action, target: Target) -> bool:
        """Whether a permit allows the action, and none denies it."""
        return self.judge(action, target).allowed

    def may_see(self, target: Target) -> bool:
        """Whether any action on it is allowed."""
        delegated = self.caller.delegated
        if delegated is not None:
            return may_see_delegated(delegated.links, target, self.now, self.address)
        return _is_authorized(self.caller, target) and may_see(
            self.caller.permits, target, self.now, self.address
        )

    def may_audit(self, target: Target) -> bool:
        """Whether the caller reads what admins read."""
        return any(self.allows(action, target) for action in READING_ACTIONS)

    def require_permit(self, *actions: Action, of: Target, hidden: bool = False) -> None:
        """Check that a permit allows one of `actions` on the target, and note its use.

        Raises Failure NOT_PERMITTED; NOT_FOUND when no action on a `hidden` target is allowed, as for
        one that doesn't exist.
        """
        decision = self.permitted(*actions, of=of, hidden=hidden)
        if decision.permit is not None and self.caller.session is None:  # a role's permit has no row
            self.api.ledger.note_use(self.tenant, decision.permit.id)
        if decision.observed:
            self.observed.update(decision.observed)
            metrics.count(metrics.OBSERVED_DENIALS, "observed", of.provider)

    def permitted(
        self, *actions: Action, of: Target, hidden: bool = False, proxied: ProxiedRequest | None = None
    ) -> PermitDecision:
        """As `require_permit`, for one that notes the use itself: the decision that allows it."""
        refused: PermitDecision | None = None
        for action in actions:
            decision = self.judge(action, of, proxied=proxied)
            if decision.allowed:
                return decision
            refused = refused or decision
        if refused is None or (hidden and not self.may_see(of)):
            raise Failure(ErrorCode.NOT_FOUND)
        if refused.reason in (DecisionReason.DENIED, DecisionReason.REQUEST_NOT_PERMITTED):
            raise refusal(refused, request=proxied)
        under = "" if self.caller.delegated is None else ", or its delegation is narrower"
        why = f"This needs the action {' or '.join(actions)}, and {self.caller.app.name} has no permit for it"
        raise Failure(ErrorCode.NOT_PERMITTED, f"{why}{under}.")

    async def integration_target(self, name: str, provider: str | None = None) -> Target:
        """The integration of this name as permits see it. `provider`: of one that isn't there yet."""
        async with self.api.store.read() as tx:
            integration = await tx.integrations.by_name(self.tenant, name)
        return Target(name, provider if integration is None else integration.provider)

    def require_step_up(self) -> None:
        """Raise Failure STEP_UP_REQUIRED for a person who didn't log in moments ago; apps can't log in."""
        session = self.caller.session
        if session is not None and not session.is_stepped_up(self.now):
            raise Failure(
                ErrorCode.STEP_UP_REQUIRED, login_url=login_url(self.api, self.tenant, step_up=True)
            )

    async def visible_connection(
        self, tx: Transaction, connection_id: str, *actions: Action, revoking: bool = False
    ) -> Connection:
        """The connection, if a permit covers it and allows one of `actions` (none given: any action).

        Raises Failure NOT_FOUND alike for an absent, another tenant's and an uncovered connection;
        NOT_PERMITTED when a permit covers it for other actions; AUTHORITY_BROKEN, and INTERNAL for a row that
        can't be read, which stop no one from `revoking` it.
        """
        id = ConnectionId(connection_id)
        if revoking:
            connection = await tx.revocable_rows.connection(self.tenant, id, self.now)
        else:
            connection = await tx.connections.get_authentic(self.tenant, id)
        if connection is None or not self.may_see(Target.of(connection)):
            raise Failure(ErrorCode.NOT_FOUND)
        if actions:
            self.require_permit(*actions, of=Target.of(connection), hidden=True)
        return connection

    def entry(self, action: AuditAction, object_id: str, /, **detail: object) -> AuditEntry:
        """An audit entry about the object with this id. `detail` must hold no secret.

        It names the permits that would have denied the request if their mode were `enforce`, and the set of
        configuration files that the change comes from.
        """
        if self.observed:
            detail = {**detail, "would_be_denied_by": sorted(self.observed)}
        if self.managed_by is not None:
            detail = {**detail, "managed_by": self.managed_by}
        return AuditEntry(
            tenant=self.tenant,
            at=self.now,
            action=action,
            object=object_id,
            context=self.context,
            detail=detail,
        )

    async def record(self, tx: Transaction, action: AuditAction, object_id: str, /, **detail: object) -> None:
        """Append one audit record, as `entry` makes it."""
        await audit.append(tx, self.entry(action, object_id, **detail))

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, tries: int = ATTEMPTS) -> T:
        """Run `work` in a transaction, again after a conflict, and deliver the outbox; of a dry run keep
        nothing. Raises as `require_standing`."""
        if self.dry_run is not None:
            return await run_rolled_back(self.api.store, self.while_standing(work), tries=tries)
        result = await run_transaction(self.api.store, self.while_standing(work), tries=tries)
        self.api.relay.notify()
        return result

    def while_standing(
        self, work: Callable[[Transaction], Awaitable[T]]
    ) -> Callable[[Transaction], Awaitable[T]]:
        """`work`, done only if the caller stands in its transaction."""

        async def checked(tx: Transaction) -> T:
            await self.require_standing(tx)
            return await work(tx)

        return checked

    async def require_standing(self, tx: Transaction) -> None:
        """Check that nothing has ended since the caller was authenticated that its request rests on.

        Raises Failure TENANT_DISABLED, TENANT_MOVED, TENANT_ARRIVING; UNAUTHENTICATED for a session that has
        ended; STORE_CONFLICT when the app, its permits or what it was authenticated by was changed: the
        request, repeated, is judged by what is so now.
        """
        session = self.caller.session
        if session is not None and session.kind is SessionKind.BREAK_GLASS:
            await tx.tenants.require_here(self.tenant)  # the operator's own may still revoke
        else:
            await tx.tenants.require_enabled(self.tenant)
        if session is None:
            if not await self._is_as_judged(tx):
                why = f"The app {self.caller.app.name}, its permits or its key were changed meanwhile."
                raise Failure(ErrorCode.STORE_CONFLICT, why)
            return
        current = await tx.person_sessions.to_end(self.tenant, session.id)
        if current is None or not current.is_live(self.now):
            raise Failure(ErrorCode.UNAUTHENTICATED, "The session has ended: log in again.")

    async def _is_as_judged(self, tx: Transaction) -> bool:
        """Whether the app, its permits and its API key are as they were judged.

        They are compared once the app's revision has moved, which a change of another key of the app does,
        too. An app that was authenticated otherwise isn't as judged then.
        """
        app, credential = self.caller.app, self.caller.credential
        if await tx.access.revision(self.tenant, app.id) == app.revision:
            return True
        by_key = credential.method is AuthenticationMethod.API_KEY
        row = await tx.access.key(KeyId(credential.id)) if by_key else None
        if row is None or not row[0].is_live(self.now):
            return False
        same = row[1].__replace__(revision=app.revision) == app
        return same and tuple(await tx.access.permits_of(row[1])) == self.caller.permits

    def request_hash(self, sent: BaseModel | None) -> str:
        """Method, path and body of the request, hashed."""
        body = sent.model_dump(mode="json") if sent is not None else None
        described = json.dumps([self.request.method, self.request.url.path, body], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()


def _is_authorized(caller: Caller, target: Target) -> bool:
    """Whether the target is the subject's, and the connection's, that the caller's token is for: an OAuth
    client is bound by both beside the permits of its app."""
    authorization = caller.authorization
    if authorization is None:
        return True
    one = authorization.connection_id
    return target.subject == authorization.subject and one in (None, target.connection_id)


def refusal(
    decision: PermitDecision, above: Iterable[str] = (), request: ProxiedRequest | None = None
) -> Failure:
    """The failure for scopes that aren't permitted, of the decision or `above` a ceiling, or for a
    `request` to a provider's API."""
    scopes = tuple(dict.fromkeys((*decision.refused_scopes, *above)))
    if decision.reason is DecisionReason.DENIED:
        assert decision.permit_name is not None
        code = ErrorCode.SCOPE_NOT_PERMITTED if scopes else ErrorCode.NOT_PERMITTED
        why = f"The permit {decision.permit_name} denies it.{_unknown_method(decision, request)}"
        failure = Failure(code, why, permit=decision.permit_name)
        failure.context |= {"scopes": " ".join(scopes)} if scopes else {}
        return failure
    if decision.reason is DecisionReason.REQUEST_NOT_PERMITTED:
        assert decision.permit_name is not None
        why = f"The permit {decision.permit_name} has other methods, paths or tools."
        why += _unknown_method(decision, request)
        return Failure(ErrorCode.NOT_PERMITTED, why, permit=decision.permit_name)
    why = "A scope is above the ceiling of the permit, the integration or the delegation."
    if decision.reason is DecisionReason.TOKEN_ABOVE_REQUEST:
        why = "The token can do more than the requested scopes, and the permit insists that it can't."
    return Failure(ErrorCode.SCOPE_NOT_PERMITTED, why, scopes=" ".join(scopes))


def _unknown_method(decision: PermitDecision, request: ProxiedRequest | None) -> str:
    """Why a permit that names methods refuses a request that may have two."""
    if request is None or not request.overrides or decision.permit is None or decision.permit.methods is None:
        return ""
    places = ", ".join(request.overrides)
    return f" It names methods, and the request may name another one to the API: in {places}."
