"""Which person has which role: by the groups that the tenant's issuer names.

A person is an issuer's `iss` and `sub`, which alone are stable (OpenID Connect Core 1.0 section 5.7).
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import cast

from evergrant_server.core.access import Action
from evergrant_server.core.connections.login import LoginRule
from evergrant_server.core.ids import AdminLoginId, PersonId, Tenant, TenantRow, derived_id
from evergrant_server.core.integrations import Integration, require_pinned_login
from evergrant_server.core.model import FrozenModel
from evergrant_server.core.text import is_storable_text

HOST = "host"  # the issuer of people whose proof is the host itself
_LONGEST_NAME = 255


class PersonRole(StrEnum):
    """What a person may do in a tenant, in falling order of rights."""

    TENANT_ADMIN = "tenant_admin"
    AUDITOR = "auditor"
    STORY_READER = "story_reader"  # an operator, who reads connections and their stories


ROLE_ACTIONS = {
    PersonRole.TENANT_ADMIN: (Action.ADMIN,),
    PersonRole.AUDITOR: (Action.AUDIT,),
    PersonRole.STORY_READER: (Action.STORIES,),
}


class AdminLogin(TenantRow):
    """Where a tenant's people log in, and which of the issuer's groups have a role, by exact names.

    Each change gives it another `id`, which ends the sessions of before.
    """

    id: AdminLoginId
    integration: str  # our client at the tenant's issuer
    issuer: str  # pinned: who administers that integration alone can't appoint admins by another issuer
    groups_claim: str
    roles: dict[PersonRole, tuple[str, ...]]
    scopes: tuple[str, ...] = ()  # beside openid, where the issuer tells the groups for a scope
    changed_at: datetime

    def issuer_integration(self, integration: Integration | None) -> Integration:
        """The integration at whose issuer people log in. Raises Failure CLIENT_REJECTED with the repair."""
        rule = LoginRule(integration=self.integration, issuer=self.issuer)
        return require_pinned_login(rule, integration, "People")

    def role_of(self, claims: Mapping[str, object]) -> PersonRole | None:
        """The first role that has one of the person's groups; None without such a group."""
        claim = claims.get(self.groups_claim)
        groups = {claim} if isinstance(claim, str) else _texts(claim)
        return next((role for role in PersonRole if not groups.isdisjoint(self.roles.get(role, ()))), None)


class Person(FrozenModel):
    """Who logged in. `name` is the issuer's word for people to read, and decides nothing."""

    issuer: str
    sub: str
    name: str | None = None


def person_id(tenant: Tenant, person: Person) -> PersonId:
    return PersonId(derived_id("psn", tenant, person.issuer, person.sub))


def person_of(issuer: str, claims: Mapping[str, object]) -> Person | None:
    """The person with these checked claims of an id token; None for a `sub` that is none (section 2)."""
    sub = claims.get("sub")
    if not isinstance(sub, str) or not 0 < len(sub) <= _LONGEST_NAME or not is_storable_text(sub):
        return None
    names = (claims.get(claim) for claim in ("email", "preferred_username", "name"))
    shown = (name for name in names if isinstance(name, str) and name and is_storable_text(name))
    return Person(issuer=issuer, sub=sub, name=next(shown, "")[:_LONGEST_NAME] or None)


def _texts(value: object) -> set[str]:
    return (
        {group for group in cast("list[object]", value) if isinstance(group, str)}
        if isinstance(value, list)
        else set()
    )
