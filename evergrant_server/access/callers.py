"""Who sends a request: an app with what proved it, its permits, and what narrows them.

A delegation's token is accepted while each delegation of its path stands, with its app, that app's
credential, and the rule that accepted the person's token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import chain

from evergrant_server.audit.lease_record import DelegatedUse
from evergrant_server.core.access import App, AuthenticationMethod, Permit
from evergrant_server.core.agents.delegations import Delegation, chain_problem
from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import CredentialId, DelegationId, KeyId, Tenant
from evergrant_server.core.oauth.authorizations import Authorization, TokenFamily
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.policy import DelegationLink
from evergrant_server.store import Transaction


@dataclass(frozen=True)
class PresentedCredential:
    """What a caller proved its identity with, and until when that is accepted.

    `id` is that of the API key, or of the credential whose token it is. `confirmation`: what each request
    must prove as well (`cnf`, RFC 7800 section 3.1).
    """

    id: KeyId
    method: AuthenticationMethod
    valid_until: datetime
    confirmation: Mapping[str, str] | None = None

    def of(self, app: App) -> "PresentedCredential":
        """Accepted no longer than the app, where that is an agent."""
        ends = app.ends_at
        return self if ends is None else replace(self, valid_until=min(self.valid_until, ends))


@dataclass(frozen=True)
class DelegatedAuthority:
    """A chain of delegations from the root on, the app of each, and its permits. `valid_until`: the first of
    their ends."""

    chain: tuple[Delegation, ...]
    apps: tuple[App, ...]
    links: tuple[DelegationLink, ...]
    valid_until: datetime

    @property
    def own(self) -> Delegation:
        """The delegation whose token it is."""
        return self.chain[-1]

    @property
    def narrows(self) -> bool:
        """Whether a delegation of the chain names scopes: then a token never does more than is requested."""
        return any(delegation.reach.scopes is not None for delegation in self.chain)

    @property
    def act(self) -> dict[str, object]:
        """Who acts, and for which actor (RFC 8693 section 4.1): the outermost is the one that does."""
        act: dict[str, object] = {}
        for app in self.apps:
            act = {"sub": f"app:{app.name}", **({"act": act} if act else {})}
        return act

    @cached_property
    def use(self) -> DelegatedUse:
        """What the ledger compares and records of a use."""
        root, last = self.chain[0], self.own
        rows = [(delegation.id, delegation.revision) for delegation in self.chain]
        if root.rule_id is not None and root.rule_revision is not None:
            rows.append((DelegationId(root.rule_id), root.rule_revision))
        apps = {app.id: app.revision for app in self.apps if app.id != last.app_id}
        chain = [f"app:{app.name}" for app in self.apps]
        recorded = {"subject": last.subject, "delegation": last.id, "session": last.root_id, "chain": chain}
        return DelegatedUse(tuple(rows), tuple(apps.items()), recorded)


@dataclass(frozen=True)
class Caller:
    """An authenticated app and its permits, read at the app's `revision`."""

    app: App
    credential: PresentedCredential
    permits: tuple[Permit, ...]
    digest: bytes = field(repr=False)  # of the credential as presented, to recognize it again
    session: PersonSession | None = None  # of a person, who stands in `app` by id and rights
    authorization: TokenFamily | None = None  # of a gateway's client, which narrows what `permits` allow
    delegated: DelegatedAuthority | None = None  # on whose behalf, which narrows what `permits` allow

    @property
    def tenant(self) -> Tenant:
        return self.app.tenant

    @cached_property
    def names_sources(self) -> bool:
        """Whether a permit looks at the caller's address."""
        return any(permit.sources is not None for permit in self.judging_permits)

    @property
    def judging_permits(self) -> tuple[Permit, ...]:
        """All that a request is judged by: also those of the apps that the caller acts under."""
        links = () if self.delegated is None else self.delegated.links
        return tuple(chain.from_iterable(link.permits for link in links)) if links else self.permits

    @property
    def by(self) -> str:
        return f"app:{self.app.name}" if self.session is None else self.session.by


async def authority_of(tx: Transaction, delegation: Delegation, now: datetime) -> DelegatedAuthority:
    """The authority of a delegation, judged up to its root. Raises Failure DELEGATION_ENDED; APP_DISABLED,
    AGENT_ENDED for the app itself; AUTHORITY_BROKEN."""
    chain = await tx.delegations.chain(delegation)
    if problem := chain_problem(chain, now):
        raise _ended(f"The delegation doesn't count any more: {problem}.", delegation)
    await _require_rule(tx, chain[0])
    apps: list[App] = []
    links: list[DelegationLink] = []
    ends = [delegation.expires_at]
    for one in chain:
        app = await _active_app(tx, one, delegation, now)
        ends += [end for end in (app.ends_at, await _end_of_credential(tx, one, now)) if end is not None]
        permits = await tx.access.permits_of(app)
        apps.append(app)
        links.append(DelegationLink(one.subject, one.reach, permits))
    return DelegatedAuthority(chain, tuple(apps), tuple(links), min(ends))


async def _require_rule(tx: Transaction, root: Delegation) -> None:
    """The person's token is accepted as long as the rule that did so is what it was."""
    if root.rule_id is None:
        return
    rule = await tx.delegation_rules.get(root.tenant, root.rule_id)
    if rule is None or rule.revision != root.rule_revision:
        raise _ended("The rule that accepted the person's token was changed or deleted.", root)


async def _active_app(tx: Transaction, one: Delegation, delegation: Delegation, now: datetime) -> App:
    app = await tx.access.app(one.tenant, one.app_id)
    if app is None:
        raise _ended(f"The app of {one.id} was deleted.", delegation)
    try:
        await tx.agents.require_active(app, now)
    except Failure as failure:
        if one.app_id == delegation.app_id or failure.code is ErrorCode.AUTHORITY_BROKEN:
            raise
        raise _ended(
            f"{app.name}, which it was delegated by, is disabled or has ended.", delegation
        ) from None
    return app


async def _end_of_credential(tx: Transaction, one: Delegation, now: datetime) -> datetime | None:
    """When the API key that proved the app ends; None for a credential. Raises Failure DELEGATION_ENDED."""
    if one.method is AuthenticationMethod.API_KEY:
        key_and_app = await tx.access.key(one.key_id)
        if key_and_app is not None and key_and_app[0].is_live(now):
            return key_and_app[0].expires_at
    else:
        credential = await tx.credentials.get(one.tenant, CredentialId(one.key_id))
        if credential is not None and credential.revision == one.credential_revision:
            return None
    raise _ended(f"The credential that {one.id} was made with was revoked, replaced or has expired.", one)


def _ended(why: str, delegation: Delegation) -> Failure:
    return Failure(ErrorCode.DELEGATION_ENDED, why, delegation=delegation.id)


async def standing_app(tx: Transaction, authorization: Authorization, now: datetime) -> App:
    """The app as which the client acts, if tenant, app, client and the subject's login still count.

    Raises Failure UNAUTHENTICATED, TENANT_DISABLED, APP_DISABLED, AGENT_ENDED, AUTHORITY_BROKEN.
    """
    await tx.tenants.require_enabled(authorization.tenant)
    app = await tx.access.app(authorization.tenant, authorization.app_id)
    client = await tx.oauth_clients.by_client_id(authorization.client_id)
    if app is None or client is None or client.disabled or _is_older(authorization, client):
        raise Failure(ErrorCode.UNAUTHENTICATED, "The client was disabled or deleted.")
    if authorization.rule is not None:
        rule = await tx.client_logins.of_tenant(authorization.tenant)
        if rule is None or rule.id != authorization.rule or not rule.takes(client.kind):
            raise Failure(ErrorCode.UNAUTHENTICATED, "The login of clients was changed: authorize again.")
    await tx.agents.require_active(app, now)
    return app


def _is_older(authorization: Authorization, client: GatewayClient) -> bool:
    """Whether it was of a client that was deleted, whose id came again, as the URL of a document does."""
    return authorization.created_at + CLOCK_SKEW < client.created_at
