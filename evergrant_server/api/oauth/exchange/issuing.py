"""Adds a delegation to a tree, within its parent in every respect, with its audit record."""

from dataclasses import dataclass
from datetime import datetime

from evergrant_server.access.callers import DelegatedAuthority
from evergrant_server.access.credentials import new_delegation_token
from evergrant_server.access.transactions import record
from evergrant_server.api.oauth.client_authentication import TokenRefused
from evergrant_server.core.access import App, AuthenticationMethod
from evergrant_server.core.agents.delegation_rules import DelegationRule
from evergrant_server.core.agents.delegations import (
    LONGEST,
    MOST_DEPTH,
    MOST_IN_TREE,
    Delegation,
    Reach,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AppId, ConnectionId, DelegationId, KeyId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Transaction


@dataclass(frozen=True)
class Actor:
    """The app that acts, what proved it, and what its token must prove as well.

    `expires_at` is the end of what proved it, where the delegation must end with that; `once` an assertion's
    `jti`, with its end.
    """

    app: App
    key_id: KeyId
    method: AuthenticationMethod
    credential_revision: int | None = None
    confirmation: dict[str, str] | None = None
    expires_at: datetime | None = None
    once: tuple[str, datetime] | None = None


@dataclass(frozen=True)
class Beginning:
    """Whom a delegation is for and until when: a proven person, or a `parent`."""

    subject: str
    expires_at: datetime
    proof: str
    rule: DelegationRule | None = None
    parent: DelegatedAuthority | None = None


async def add_delegation(
    tx: Transaction,
    ring: KeyRing,
    actor: Actor,
    beginning: Beginning,
    reach: Reach,
    context: RequestContext,
    now: datetime,
    *,
    ends: datetime | None = None,
    may_act: AppId | None = None,
) -> tuple[Delegation, str]:
    """The new row, and the text of its token. Raises TokenRefused for what its parent doesn't reach."""
    app, above, rule = actor.app, beginning.parent, beginning.rule
    id = DelegationId(new_id("dlg"))
    path = (id,) if above is None else (*above.own.path, id)
    await _require_room(tx, app, path)
    await _require_connections(tx, app, beginning.subject, reach)
    if above is not None:
        reach = await _within(tx, app, reach, above.own.reach)
    limits = (now + LONGEST, beginning.expires_at, actor.expires_at, app.ends_at, ends)
    text, secret_hash = new_delegation_token(ring, app.tenant, id)
    made = Delegation(
        tenant=app.tenant,
        id=id,
        path=path,
        app_id=app.id,
        key_id=actor.key_id,
        method=actor.method,
        credential_revision=actor.credential_revision,
        confirmation=None if may_act is not None else actor.confirmation,
        subject=beginning.subject,
        reach=reach,
        may_act=may_act,
        proof=beginning.proof,
        rule_id=None if rule is None else rule.id,
        rule_revision=None if rule is None else rule.revision,
        secret_hash=secret_hash,
        created_at=now,
        expires_at=min(it for it in limits if it is not None),
    )
    if made.expires_at <= now:
        raise TokenRefused("invalid_request", "It would have ended already.", claimed=app.id)
    await tx.delegations.add(made)
    await record(tx, app.tenant, AuditAction.DELEGATION_ISSUED, id, context, now, **_detail(made, app))
    return made, text


def _detail(made: Delegation, app: App) -> dict[str, object]:
    said = {
        "app": app.name,
        "subject": made.subject,
        "session": made.root_id,
        "parent": made.parent_id,
        "depth": len(made.path),
        "proof": made.proof,
        "may_act": made.may_act,
        "expires_at": made.expires_at.isoformat(),
        **made.reach.model_dump(mode="json"),
    }
    return {name: value for name, value in said.items() if value not in (None, "")}


async def _require_room(tx: Transaction, app: App, path: tuple[DelegationId, ...]) -> None:
    if len(path) > MOST_DEPTH:
        why = f"The delegation is the last of {MOST_DEPTH} already: nothing can be delegated by it."
        raise TokenRefused("invalid_request", why, claimed=app.id)
    if len(path) > 1 and await tx.delegations.tree_size(app.tenant, path[0]) >= MOST_IN_TREE:
        why = f"The session has {MOST_IN_TREE} delegations already."
        raise TokenRefused("invalid_request", why, claimed=app.id)


async def _require_connections(tx: Transaction, app: App, subject: str, reach: Reach) -> None:
    """Each named connection is the subject's. One of another subject doesn't exist for this app."""
    for id in reach.connections or ():
        found = await tx.connections.get(app.tenant, ConnectionId(id))
        if found is None or found.subject != subject:
            raise TokenRefused(
                "invalid_target", "A resource is no connection of the subject.", claimed=app.id
            )


async def _within(tx: Transaction, app: App, reach: Reach, parent: Reach) -> Reach:
    """The reach, with the parent's where it has no bound of its own. Raises TokenRefused for more."""
    if reach.scopes is not None and parent.scopes_beyond(reach.scopes):
        raise TokenRefused("invalid_scope", "A scope is beyond the delegation's.", claimed=app.id)
    is_bounded = parent.integrations is not None or parent.connections is not None
    if is_bounded and not set(reach.integrations or ()) <= set(parent.integrations or ()):
        raise TokenRefused("invalid_target", "An integration is beyond the delegation's.", claimed=app.id)
    for id in reach.connections or ():
        found = await tx.connections.get(app.tenant, ConnectionId(id))
        if found is None or not parent.names(found.integration, id):
            raise TokenRefused("invalid_target", "A connection is beyond the delegation's.", claimed=app.id)
    return reach.within(parent)
