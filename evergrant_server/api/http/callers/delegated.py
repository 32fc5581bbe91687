"""Delegation tokens: `evg_dlg_<id>_<secret><checksum>`, and the authority behind one, up to its root.

Built as API keys are (`api_keys`). The row's authenticator covers every field; a token is accepted while each
delegation of its path stands, with its app, that app's credential, and the rule that accepted the person's
token.
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from evergrant_server.api.http.api_keys import checksum
from evergrant_server.audit.delegated_leases import DelegatedUse
from evergrant_server.core.access import App, AuthenticationMethod
from evergrant_server.core.agents.delegations import Delegation, chain_problem
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import CredentialId, DelegationId, Tenant
from evergrant_server.crypto import KeyRing
from evergrant_server.policy import DelegationLink
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import report_broken_authority

PREFIX = "evg_dlg_"
_TOKEN = re.compile(r"^(evg_(dlg_[0-9a-z]{22})_([0-9a-f]{64}))([0-9A-Za-z]{6})\Z")
_NO_HASH = secrets.token_hex(32)


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
    def act(self) -> dict[str, object]:
        """Who acts, and for which actor (RFC 8693 section 4.1): the outermost is the one that does."""
        found: dict[str, object] = {}
        for app in self.apps:
            found = {"sub": f"app:{app.name}", **({"act": found} if found else {})}
        return found

    @cached_property
    def use(self) -> DelegatedUse:
        """What the ledger compares and records of a use."""
        root, own = self.chain[0], self.own
        rows = [(it.id, it.revision) for it in self.chain]
        if root.rule_id is not None and root.rule_revision is not None:
            rows.append((DelegationId(root.rule_id), root.rule_revision))
        apps = {it.id: it.revision for it in self.apps if it.id != own.app_id}
        chain = [f"app:{app.name}" for app in self.apps]
        recorded = {"subject": own.subject, "delegation": own.id, "session": own.root_id, "chain": chain}
        return DelegatedUse(tuple(rows), tuple(apps.items()), recorded)


def new_secret(ring: KeyRing, tenant: Tenant, id: DelegationId) -> tuple[str, str]:
    """The text of a new token, which isn't stored, and what the store keeps of it."""
    secret = secrets.token_hex(32)
    text = f"evg_{id}_{secret}"
    return text + checksum(text), ring.token_mac("delegation", tenant, id, secret)


async def read_authority(tx: Transaction, text: str, now: datetime) -> DelegatedAuthority:
    """The authority behind a token. Raises Failure UNAUTHENTICATED, DELEGATION_ENDED, APP_DISABLED,
    AGENT_ENDED, TENANT_DISABLED. A row that was changed by hand is unknown, with an alarm."""
    match = _TOKEN.match(text)
    if match is None or checksum(match[1]) != match[4]:
        raise Failure(ErrorCode.UNAUTHENTICATED)
    id = DelegationId(match[2])
    try:
        own = await tx.delegations.find(id)
        made = tx.sealer.ring.token_mac("delegation", own.tenant if own else "", id, match[3])
        if not hmac.compare_digest(own.secret_hash if own else _NO_HASH, made) or own is None:
            raise Failure(ErrorCode.UNAUTHENTICATED)
        await tx.tenants.require_enabled(own.tenant)
        return await authority_of(tx, own, now)
    except Failure as failure:
        if failure.code is not ErrorCode.AUTHORITY_BROKEN:
            raise
        report_broken_authority(failure)
        raise Failure(ErrorCode.UNAUTHENTICATED) from None


async def authority_of(tx: Transaction, own: Delegation, now: datetime) -> DelegatedAuthority:
    """The authority of a delegation, judged up to its root. Raises Failure DELEGATION_ENDED; APP_DISABLED,
    AGENT_ENDED for the app itself; AUTHORITY_BROKEN."""
    chain = await tx.delegations.chain(own)
    if problem := chain_problem(chain, now):
        raise _ended(f"The delegation doesn't count any more: {problem}.", own)
    await _require_rule(tx, chain[0])
    apps: list[App] = []
    links: list[DelegationLink] = []
    ends = [own.expires_at]
    for one in chain:
        app = await _active_app(tx, one, own, now)
        ends += [it for it in (app.ends_at, await _end_of_credential(tx, one, now)) if it is not None]
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


async def _active_app(tx: Transaction, one: Delegation, own: Delegation, now: datetime) -> App:
    app = await tx.access.app(one.tenant, one.app_id)
    if app is None:
        raise _ended(f"The app of {one.id} was deleted.", own)
    try:
        await tx.agents.require_active(app, now)
    except Failure as failure:
        if one.app_id == own.app_id or failure.code is ErrorCode.AUTHORITY_BROKEN:
            raise
        raise _ended(f"{app.name}, which it was delegated by, is disabled or has ended.", own) from None
    return app


async def _end_of_credential(tx: Transaction, one: Delegation, now: datetime) -> datetime | None:
    """When the API key that proved the app ends; None for a credential. Raises Failure DELEGATION_ENDED."""
    if one.method is AuthenticationMethod.API_KEY:
        found = await tx.access.key(one.key_id)
        if found is not None and found[0].is_live(now):
            return found[0].expires_at
    else:
        credential = await tx.credentials.get(one.tenant, CredentialId(one.key_id))
        if credential is not None and credential.revision == one.credential_revision:
            return None
    raise _ended(f"The credential that {one.id} was made with was revoked, replaced or has expired.", one)


def _ended(why: str, own: Delegation) -> Failure:
    return Failure(ErrorCode.DELEGATION_ENDED, why, delegation=own.id)
