"""Sessions of people: how long they last, and the rights that they bring."""

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.access import Permit
from evergrant_server.core.ids import AdminLoginId, AppId, PermitId, PersonId, SessionId, TenantRow
from evergrant_server.core.people.roles import ROLE_ACTIONS, Person, PersonRole, person_id

SESSION_LASTS = timedelta(hours=12)
SESSION_IDLE = timedelta(minutes=30)
BREAK_GLASS_LASTS = timedelta(hours=1)
STEP_UP_LASTS = timedelta(minutes=5)  # `max_age` of the login that a dangerous command needs


class SessionKind(StrEnum):
    """Where a session's secret is accepted."""

    BROWSER = "browser"  # a cookie
    COMMAND = "command"  # a bearer token, of `evergrant login`
    BREAK_GLASS = "break_glass"  # a bearer token, made on the host


class PersonSession(TenantRow):
    """A person who is logged in. Of its secret, of 256 bits, only a hash is kept."""

    id: SessionId
    kind: SessionKind
    secret_hash: str
    rule: AdminLoginId | None  # None: made on the host
    person: Person
    role: PersonRole
    reason: str | None = None
    authenticated_at: datetime | None  # when the issuer saw the person; None: it doesn't say
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None

    @property
    def person_id(self) -> PersonId:
        return person_id(self.tenant, self.person)

    @property
    def by(self) -> str:
        return f"person:{self.person_id}"

    def is_live(self, now: datetime) -> bool:
        idle = self.kind is not SessionKind.BREAK_GLASS and now >= self.last_used_at + SESSION_IDLE
        return self.ended_at is None and now < self.expires_at and not idle

    def is_stepped_up(self, now: datetime) -> bool:
        """True when the person proved who they are moments ago, or by having the host."""
        if self.kind is SessionKind.BREAK_GLASS:
            return True
        return self.authenticated_at is not None and now < self.authenticated_at + STEP_UP_LASTS


def role_permits(session: PersonSession) -> tuple[Permit, ...]:
    """The rights of a role, as `policy.decide` reads them."""
    permit = Permit(
        tenant=session.tenant,
        id=PermitId(session.id),
        app_id=AppId(session.person_id),
        name=session.role,
        integration="*",
        actions=ROLE_ACTIONS[session.role],
        created_at=session.created_at,
    )
    return (permit,)


def hash_secret(secret: str) -> str:
    """What a session's secret, or a one-time code, is found by. It has 256 bits: a plain hash is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
