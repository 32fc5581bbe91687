"""Delegations, which the grants of `token_exchange` and `id_jag` begin: what is asked for, and the new row.

A delegation is within its parent in every respect, and shorter than what proved its person; it is added with
its audit record, in the transaction that judges it.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from evergrant_server.access.callers import DelegatedAuthority
from evergrant_server.access.credentials import new_delegation_token
from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.oauth.client_authentication import (
    ClientTokenRequest,
    KeysNeeded,
    ProvenClient,
    TokenRefused,
    read_keys,
)
from evergrant_server.api.oauth.client_credentials import require_active
from evergrant_server.core.access import Action, App, AuthenticationMethod
from evergrant_server.core.agents.delegation_rules import DelegationRule
from evergrant_server.core.agents.delegations import (
    DELEGATED_ACTIONS,
    LONGEST,
    MOST_DEPTH,
    MOST_IN_TREE,
    Delegation,
    Reach,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import (
    AppId,
    ConnectionId,
    DelegationId,
    KeyId,
    TrustedIssuerId,
    is_id,
    is_slug,
    new_id,
)
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.settings import Settings
from evergrant_server.store import Transaction
from evergrant_server.telemetry.traces import trace_of
from providers.responses.workload_token import WorkloadToken

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
_MOST_NAMED = 50  # scopes, and resources
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 section 3.3


class Wanted(NamedTuple):
    """How far a delegation reaches, how long, and for whom (RFC 8693 section 2.1).

    `may_act` names the app that alone may exchange the token further; None: it is used as it is.
    """

    reach: Reach
    lifetime: timedelta
    may_act: str | None


def read_wanted(parameters: Mapping[str, str], settings: Settings) -> Wanted:
    """What the parameters of a token request ask for. Raises TokenRefused."""
    if parameters.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
        raise TokenRefused("invalid_request", f"requested_token_type must be {ACCESS_TOKEN}.")
    if parameters.get("audience", settings.public_url) != settings.public_url:
        raise TokenRefused("invalid_target", "audience must be this server's issuer.")
    integrations, connections, actions = _targets(parameters.get("resource"), settings)
    scopes = _scopes(parameters.get("scope"))
    reach = Reach(scopes=scopes, integrations=integrations, connections=connections, actions=actions)
    return Wanted(reach, _lifetime(parameters.get("expires_in")), parameters.get("may_act"))


def _scopes(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    scopes = tuple(dict.fromkeys(text.split(" ")))
    if len(scopes) > _MOST_NAMED or not all(_SCOPE.fullmatch(scope) for scope in scopes):
        raise TokenRefused("invalid_scope", f"scope: at most {_MOST_NAMED}, with one space between two.")
    return scopes


def _targets(
    text: str | None, settings: Settings
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None, tuple[Action, ...]]:
    """Integrations, connections and actions. A resource of the gateway is for calls through it alone; the
    base URLs stand for everything behind them."""
    integrations: list[str] = []
    connections: list[str] = []
    actions = DELEGATED_ACTIONS
    resources = [] if text is None else text.split(" ")
    for resource in resources:
        base, gateway = settings.public_url, settings.gateway_public_url
        integration = resource.removeprefix(f"{base}/v1/integrations/")
        proxied = resource.removeprefix(f"{gateway}/v1/proxy/")
        proxied = resource.removeprefix(f"{gateway}/mcp/") if proxied == resource else proxied
        connection = resource.removeprefix(f"{base}/v1/connections/")
        if resource == gateway or (proxied != resource and is_id(proxied, "con")):
            actions = (Action.PROXY,)
        if is_id(connection, "con") or is_id(proxied, "con"):
            connections.append(connection if is_id(connection, "con") else proxied)
        elif integration != resource and is_slug(integration):
            integrations.append(integration)
        elif resource not in (base, gateway):
            why = "resource must be a URL of this server's connections, integrations, or its gateway."
            raise TokenRefused("invalid_target", why)
    if len(resources) > _MOST_NAMED:
        raise TokenRefused("invalid_target", f"At most {_MOST_NAMED} resources.")
    if not integrations and not connections:
        return None, None, actions
    return tuple(dict.fromkeys(integrations)), tuple(dict.fromkeys(connections)), actions


def _lifetime(text: str | None) -> timedelta:
    if text is None:
        return LONGEST
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise TokenRefused("invalid_request", "expires_in must be a number of seconds.")
    return min(timedelta(seconds=int(text)), LONGEST)


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

    @classmethod
    def of(cls, client: ProvenClient) -> "Actor":
        credential = client.credential
        return cls(
            *(client.app, credential.id, credential.method, credential.revision),
            *(client.confirmation, client.expires_at, client.once),
        )


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
    request: ClientTokenRequest,
    actor: Actor,
    beginning: Beginning,
    reach: Reach,
    context: RequestContext,
    *,
    ends: datetime | None = None,
    may_act: AppId | None = None,
) -> tuple[Delegation, str]:
    """The new row, and the text of its token. Raises TokenRefused for what its parent doesn't reach."""
    app, rule, now, id = actor.app, beginning.rule, request.now, DelegationId(new_id("dlg"))
    path, reach = await _place_in_tree(tx, app, beginning, id, reach)
    limits = (now + LONGEST, beginning.expires_at, actor.expires_at, app.ends_at, ends)
    text, secret_hash = new_delegation_token(request.api.ring, app.tenant, id)
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
        expires_at=min(limit for limit in limits if limit is not None),
    )
    if made.expires_at <= now:
        raise TokenRefused("invalid_request", "It would have ended already.", claimed=app.id)
    await tx.delegations.add(made)
    await record(tx, app.tenant, AuditAction.DELEGATION_ISSUED, id, context, now, **_detail(made, app))
    return made, text


async def _place_in_tree(
    tx: Transaction, app: App, beginning: Beginning, id: DelegationId, reach: Reach
) -> tuple[tuple[DelegationId, ...], Reach]:
    """The new delegation's path from its root, and its reach within its parent's. Raises TokenRefused."""
    parent = beginning.parent
    path = (id,) if parent is None else (*parent.own.path, id)
    await _require_room(tx, app, path)
    await _require_connections(tx, app, beginning.subject, reach)
    return path, reach if parent is None else await _within(tx, app, reach, parent.own.reach)


def _detail(made: Delegation, app: App) -> dict[str, object]:
    members = {
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
    return {name: value for name, value in members.items() if value not in (None, "")}


async def _require_room(tx: Transaction, app: App, path: tuple[DelegationId, ...]) -> None:
    if len(path) > MOST_DEPTH:
        why = f"The delegation is the last of {MOST_DEPTH} already: nothing can be delegated by it."
        raise TokenRefused("invalid_request", why, claimed=app.id)
    if len(path) > 1:
        await tx.take_turns(f"delegations:{path[0]}")
    if len(path) > 1 and await tx.delegations.tree_size(app.tenant, path[0]) >= MOST_IN_TREE:
        why = f"The session has {MOST_IN_TREE} delegations already."
        raise TokenRefused("invalid_request", why, claimed=app.id)


async def _require_connections(tx: Transaction, app: App, subject: str, reach: Reach) -> None:
    """Raise TokenRefused for a named connection of another subject, as if it didn't exist."""
    for id in reach.connections or ():
        connection = await tx.connections.get(app.tenant, ConnectionId(id))
        if connection is None or connection.subject != subject:
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
        connection = await tx.connections.get(app.tenant, ConnectionId(id))
        if connection is None or not parent.names(connection.integration, id):
            raise TokenRefused("invalid_target", "A connection is beyond the delegation's.", claimed=app.id)
    return reach.within(parent)


# --- the transaction that judges ----------------------------------------------------------------

Add = Callable[[Transaction, RequestContext], Awaitable[tuple[Delegation, str]]]
Refused = Callable[[str, App, str | None], TokenRefused]


async def judged(
    request: ClientTokenRequest, actor: Actor, add: Add, no_key: Refused
) -> tuple[Delegation, str]:
    """What `add` returns, if the actor may act now. Its assertion, and what `add` uses up, counts once.

    The transaction is repeated once, when a worker has read the issuer's newest keys. `no_key` makes the
    refusal of a token that no key of its issuer has signed. Raises TokenRefused, Failure
    PROVIDER_UNREACHABLE.
    """
    app = actor.app
    context = trace_of(request.http).request_context(f"app:{app.name}")

    async def write(tx: Transaction) -> tuple[Delegation, str]:
        if actor.once is not None and not await tx.tokens.use_assertion(app, *actor.once):
            raise TokenRefused("invalid_client", "The assertion's jti was used before.", claimed=app.id)
        if not await tx.tenants.is_enabled(app.tenant):
            raise TokenRefused("unauthorized_client", "The tenant is disabled.", claimed=app.id)
        await require_active(tx, app, request.now)
        return await add(tx, context)

    try:
        return await run_transaction(request.api.store, write)
    except KeysNeeded as needed:
        await read_keys(request.api, needed, context)
    try:
        return await run_transaction(request.api.store, write)
    except KeysNeeded as still:
        raise no_key("The token's issuer has no such key.", app, still.recorded) from None


async def issuer_of(
    tx: Transaction, app: App, token: WorkloadToken, ids: set[TrustedIssuerId]
) -> TrustedIssuer | None:
    """The one of these issuers that the token claims to be of."""
    for id in sorted(ids):
        issuer = await tx.trusted_issuers.get(app.tenant, id)
        if issuer is not None and issuer.issuer == token.claims.get("iss"):
            return issuer
    return None
