"""Delegations: who acts for whom, in a tree that only becomes narrower and shorter (RFC 8693). Pure.

A row is the grant and its token. `path` names the way from the root, which is the session of a person, to the
delegation itself: every use of it is judged by each of them, and ends with the first that has ended.
"""

from datetime import datetime, timedelta

from evergrant_server.core.access import Action, AuthenticationMethod
from evergrant_server.core.ids import AppId, DelegationId, DelegationRuleId, KeyId, TenantRow
from evergrant_server.core.model import FrozenModel

MOST_DEPTH = 5  # of a tree: each use reads one row for each level
MOST_IN_TREE = 1000  # rows
LONGEST = timedelta(hours=12)  # of a tree, also where the person's token lasts longer
DELEGATED_ACTIONS = (Action.TOKEN, Action.PROXY)


class Reach(FrozenModel):
    """What a delegation reaches at the most: None is no bound of its own.

    A connection is reached when its integration or its id is listed; `scopes` are all that its token may
    have.
    """

    scopes: tuple[str, ...] | None = None
    integrations: tuple[str, ...] | None = None
    connections: tuple[str, ...] | None = None
    actions: tuple[Action, ...] = DELEGATED_ACTIONS

    def names(self, integration: str | None, connection_id: str | None) -> bool:
        """Whether a connection is reached. None: one that isn't there yet, or isn't known."""
        if self.integrations is None and self.connections is None:
            return True
        return integration in (self.integrations or ()) or connection_id in (self.connections or ())

    def within(self, parent: "Reach") -> "Reach":
        """This, with the parent's bounds where it has none of its own."""
        is_bounded = self.integrations is not None or self.connections is not None
        named = self if is_bounded else parent
        return Reach(
            scopes=parent.scopes if self.scopes is None else self.scopes,
            integrations=named.integrations,
            connections=named.connections,
            actions=tuple(action for action in self.actions if action in parent.actions),
        )

    def scopes_beyond(self, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """The scopes that aren't within."""
        return () if self.scopes is None else tuple(scope for scope in scopes if scope not in self.scopes)


class Delegation(TenantRow):
    """An app acts for a subject, as far as `reach` says and until `expires_at`.

    `path`: the ids from the root to this one. `key_id`: the API key or credential that proved the app;
    `credential_revision` of the latter. `may_act`: the only app that may exchange it further, which is all
    that it is good for then. `proof`: what proved the subject, of a root. `rule_id`: the rule that accepted
    that proof, at `rule_revision`.
    """

    id: DelegationId
    path: tuple[DelegationId, ...]
    app_id: AppId
    key_id: KeyId
    method: AuthenticationMethod
    credential_revision: int | None = None
    confirmation: dict[str, str] | None = None
    subject: str
    reach: Reach = Reach()
    may_act: AppId | None = None
    proof: str = ""
    rule_id: DelegationRuleId | None = None
    rule_revision: int | None = None
    secret_hash: str
    created_at: datetime
    expires_at: datetime
    stopped_at: datetime | None = None
    stopped_by: str | None = None
    stop_reason: str | None = None

    @property
    def root_id(self) -> DelegationId:
        """The session."""
        return self.path[0]

    @property
    def parent_id(self) -> DelegationId | None:
        return self.path[-2] if len(self.path) > 1 else None

    def stopped(self, by: str, reason: str, now: datetime) -> "Delegation":
        return self.__replace__(stopped_at=now, stopped_by=by, stop_reason=reason)


def chain_problem(chain: tuple[Delegation, ...], now: datetime) -> str | None:
    """Why a chain of rows, from the root on, carries no authority now; None for one that does."""
    path = chain[-1].path
    if tuple(delegation.id for delegation in chain) != path or len(path) > MOST_DEPTH:
        return "a delegation above it isn't there any more"
    for place, one in enumerate(chain):
        if one.path != path[: place + 1] or not _continues(one, chain[max(place - 1, 0)]):
            return "a delegation above it isn't its parent"
        if one.stopped_at is not None:
            return f"{one.id} was stopped"
        if now >= one.expires_at:
            return f"{one.id} has expired"
        if place and chain[place - 1].may_act not in (None, one.app_id):
            return f"{chain[place - 1].id} is for another app"
    return None


def _continues(one: Delegation, parent: Delegation) -> bool:
    same = (one.tenant, one.subject) == (parent.tenant, parent.subject)
    return same and one.expires_at <= parent.expires_at
