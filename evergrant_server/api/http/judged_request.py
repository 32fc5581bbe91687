"""A request as the caller's permits judge it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from fastapi import Request

from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.core.access import READING_ACTIONS, Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
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
from evergrant_server.telemetry import metrics


@dataclass(frozen=True)
class JudgedRequest:
    """A request of an authenticated app. `observed` collects the permits that would have denied it if their
    mode were `enforce`."""

    api: ApiContext
    caller: Caller
    context: RequestContext
    request: Request
    observed: set[str] = field(default_factory=set[str], compare=False, kw_only=True)

    @property
    def tenant(self) -> Tenant:
        return self.caller.tenant

    @property
    def now(self) -> datetime:
        return self.api.clock.now()

    @property
    def address(self) -> str | None:
        """The caller's address, read only where a permit asks for it; None: not known."""
        if not self.caller.names_sources:
            return None
        client = self.request.client
        forwarded = self.request.headers.getlist("x-forwarded-for")
        return caller_address(client and client.host, forwarded, self.api.settings.trusted_proxies)

    def judge(
        self,
        action: Action,
        target: Target,
        scopes: tuple[str, ...] = (),
        excess: tuple[str, ...] = (),
        proxied: ProxiedRequest | None = None,
    ) -> PermitDecision:
        """What the caller's permits say now; of a gateway's client, about what its subject authorized."""
        if not _is_authorized(self.caller, target):
            return PermitDecision(False, DecisionReason.NO_PERMIT)
        aliases = self.api.registry.scope_aliases(target.provider) if scopes else ()
        asked = (target, action, self.now, self.address, scopes, excess, proxied)
        question = PermitQuestion(*asked, aliases)
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
        self,
        *actions: Action,
        of: Target,
        hidden: bool = False,
        proxied: ProxiedRequest | None = None,
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
