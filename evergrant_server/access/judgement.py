"""Judges a lease before anything is done for it: by permits, scopes and the connection's state. Pure.

The lease decision acts on what these functions say; explanations and simulations show it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import FollowUp, Grant
from evergrant_server.core.errors import ErrorCode
from evergrant_server.policy import (
    DecisionReason,
    PermitDecision,
    PermitQuestion,
    ProxiedRequest,
    Target,
    scopes_above,
)
from evergrant_server.store import LeaseRow
from providers.definition.registry import Registry

Scopes = tuple[str, ...]
Decide = Callable[[PermitQuestion], PermitDecision]

NO_PERMIT = PermitDecision(False, DecisionReason.NO_PERMIT)
_HELD = (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)


@dataclass(frozen=True)
class PermitJudge:
    """Judges for one caller, at one moment and from one address.

    `decide` compares a question with its permits, and with those of the apps that it acts under. `narrows`:
    its delegation names scopes, and a token that can do more than is requested is narrowed.
    """

    registry: Registry
    decide: Decide
    at: datetime
    address: str | None
    narrows: bool = False

    def question(
        self,
        action: Action,
        target: Target,
        scopes: Scopes = (),
        excess: Scopes = (),
        proxied: ProxiedRequest | None = None,
    ) -> PermitQuestion:
        """The request as permits judge it."""
        aliases = self.registry.scope_aliases(target.provider) if scopes else ()
        return PermitQuestion(target, action, self.at, self.address, scopes, excess, proxied, aliases)

    def token_question(
        self, row: LeaseRow, action: Action, requested: Scopes, proxied: ProxiedRequest | None = None
    ) -> PermitQuestion:
        """A lease, or a call, with the row's token: permits judge all of the token's scopes, and those beyond
        the requested ones. A lease that requests what the token lacks is judged by what it requests."""
        granted = requested if row.grant is None or lacks(row.grant, requested) else row.grant.scopes
        beyond = scopes_above(granted, requested) if action is Action.TOKEN else ()
        scopes, excess = (self._counted(row, names) for names in (granted, beyond))
        return self.question(action, target_of(row), scopes, excess, proxied)

    def leased_question(
        self,
        row: LeaseRow,
        action: Action,
        requested: Scopes,
        proxied: ProxiedRequest | None,
        *,
        narrowable: bool,
    ) -> PermitQuestion:
        """A lease, or a call, with the token that would be leased for it: a narrower one, where it is needed
        and the provider issues such tokens (`narrowable`)."""
        if narrowable and action is Action.TOKEN and self.narrower(row, requested):
            return self.request_question(row, action, requested, proxied)
        return self.token_question(row, action, requested, proxied)

    def request_question(
        self, row: LeaseRow, action: Action, requested: Scopes, proxied: ProxiedRequest | None = None
    ) -> PermitQuestion:
        """The same with a token of exactly the requested scopes."""
        return self.question(action, target_of(row), self._counted(row, requested), (), proxied)

    def narrower(self, row: LeaseRow, requested: Scopes, *, exact: bool = False) -> Scopes:
        """The scopes for which a narrower token is needed: none where the row's own token serves, or lacks
        one of them. `exact`: the token may do no more than the requested ones."""
        if not requested or row.grant is None or lacks(row.grant, requested):
            return ()
        question = self.token_question(row, Action.TOKEN, requested)
        if not question.excess or not (narrower := self._counted(row, requested)):
            return ()
        insists = exact or self.narrows or self._refuses_excess(question)
        return narrower if insists else ()

    def _refuses_excess(self, question: PermitQuestion) -> bool:
        return self.decide(question).reason is DecisionReason.TOKEN_ABOVE_REQUEST

    def _counted(self, row: LeaseRow, scopes: Scopes) -> Scopes:
        return without_offline(self.registry, row.provider, scopes)


def without_offline(registry: Registry, provider: str, scopes: Scopes) -> Scopes:
    """The scopes that are judged, each once: the one for a refresh token permits nothing by itself."""
    offline = registry.offline_scope(provider)
    return tuple(dict.fromkeys(scope for scope in scopes if scope != offline))


def lacks(grant: Grant, requested: Scopes) -> Scopes:
    """The requested scopes that the grant doesn't have."""
    return scopes_above(requested, grant.scopes)


def target_of(row: LeaseRow) -> Target:
    return Target(row.integration, row.provider, row.subject, row.connection_id)


def row_of(connection: Connection, grant: Grant | None) -> LeaseRow:
    """The connection as the lease decision sees it, without its token."""
    return LeaseRow(
        connection.tenant,
        connection.id,
        connection.integration_id,
        connection.integration,
        connection.provider,
        connection.subject,
        connection.label,
        connection.state,
        connection.reason,
        connection.follow_up,
        connection.reported_generation,
        connection.revision,
        connection.generation,
        grant,
        sealed_access=None,
        keys=None,
        held=connection.held_by is not None,
    )


def state_refusal(row: LeaseRow, now: datetime, *, refreshes: bool = False) -> ErrorCode | None:
    """Why the connection's state lets no token be leased; None: it does. `refreshes`: while the connection is
    active, one that is over would be refreshed first."""
    valid = row.grant is not None and row.grant.is_valid(now)
    if row.leasable and (valid or (refreshes and row.state is LifecycleState.ACTIVE)):
        return None
    if row.held and row.state in (*_HELD, LifecycleState.PENDING_CONSENT):
        return ErrorCode.CONNECTION_HELD
    if row.follow_up is FollowUp.CHOOSING and row.state in _HELD:
        return ErrorCode.CHOICE_REQUIRED
    match row.state:
        case LifecycleState.REVOKING | LifecycleState.REVOKED:
            return ErrorCode.CONNECTION_REVOKED
        case LifecycleState.DENIED:
            return ErrorCode.CONSENT_DENIED
        case LifecycleState.ACTIVE:
            return ErrorCode.REFRESH_PENDING
        case _:
            return ErrorCode.CONSENT_REQUIRED
