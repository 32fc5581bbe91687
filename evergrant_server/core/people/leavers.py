"""Who leaves: how a person of the tenant's issuer is matched to subjects, by rules and never by guess. Pure.

A person is an issuer's `iss` and `sub`; a subject is what apps call whose account a connection is. An admin's
order may name the subject; else a setting says which attribute of the tenant's directory is the subject, or
the integration's login says which claim of its issuer is (the binding `oidc`).
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from unicodedata import normalize

from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.ids import DirectoryUserId, IncidentId, OffboardingRuleId, TenantRow
from evergrant_server.core.model import FrozenModel

MOST_CONNECTIONS = 250  # of one person: they are stopped in one transaction


class PersonAttribute(StrEnum):
    """What the tenant's directory says of a person (RFC 7643 section 4.1)."""

    USER_NAME = "user_name"
    EXTERNAL_ID = "external_id"
    EMAIL = "email"  # the primary one


class MatchedBy(StrEnum):
    """Why a subject is the person's."""

    ORDER = "order"  # an admin has named it
    RULE = "rule"  # the tenant's rule says which attribute is the subject
    LOGIN = "login"  # subjects of the integration log in at the person's issuer, by this claim


class OffboardingRule(TenantRow):
    """What the tenant has said about leavers.

    `subject_from`: the attribute that apps use as subject; `sub_from`: the one that is `sub` at `issuer`.
    `grace_s`: None is the setting's. `sponsor`: the app that answers for the person's agents from then on;
    None: they are stopped. Connections with one of `team_labels` are the team's: they are handed over to the
    subject `team_owner`. `dry_run`: what SCIM and events would begin is recorded, and nothing is begun.
    """

    id: OffboardingRuleId
    subject_from: PersonAttribute | None = None
    sub_from: PersonAttribute | None = None
    issuer: str | None = None
    grace_s: float | None = None
    sponsor: str | None = None
    team_labels: tuple[str, ...] = ()
    team_owner: str | None = None
    dry_run: bool = False
    changed_at: datetime


class Email(FrozenModel):
    value: str
    type: str | None = None
    primary: bool | None = None


class DirectoryUser(TenantRow):
    """A person as the tenant's directory tells by SCIM. `subject` is what the rule made of them when it was
    written: their row goes with that subject's erasure."""

    id: DirectoryUserId
    user_name: str
    user_key: str
    external_id: str | None = None
    display_name: str | None = None
    emails: tuple[Email, ...] = ()
    active: bool | None = None  # None: unassigned, which counts as active
    subject: str | None = None
    created_at: datetime
    changed_at: datetime

    @property
    def email(self) -> str | None:
        """The primary address, else the only one."""
        primary = [email.value for email in self.emails if email.primary]
        alone = [email.value for email in self.emails] if len(self.emails) == 1 else []
        return next(iter(primary or alone), None)

    def attribute(self, name: PersonAttribute | None) -> str | None:
        match name:
            case PersonAttribute.USER_NAME:
                return self.user_name
            case PersonAttribute.EXTERNAL_ID:
                return self.external_id
            case PersonAttribute.EMAIL:
                return self.email
            case None:
                return None


class NamedPerson(FrozenModel):
    """A leaver as the order names them; `issuer` and `sub` go together."""

    subject: str | None = None
    issuer: str | None = None
    sub: str | None = None
    email: str | None = None
    user_id: DirectoryUserId | None = None
    ruled: str | None = None  # the subject by the tenant's rule

    @property
    def name(self) -> str:
        """By what one person's orders are told from another's."""
        known = self.subject or self.ruled or (self.sub and f"{self.issuer} {self.sub}")
        return known or self.user_id or self.email or ""


class Match(FrozenModel):
    """A subject that is the person's: at one integration, or None: at every one."""

    subject: str
    integration: str | None = None
    by: MatchedBy

    def covers(self, integration: str, subject: str) -> bool:
        return self.subject == subject and self.integration in (None, integration)


class Leaver(TenantRow):
    """Whose offboarding an incident is, for as long as nobody has erased them. `subject` is one of theirs."""

    id: IncidentId
    subject: str
    issuer: str | None = None
    sub: str | None = None
    user_id: DirectoryUserId | None = None
    matches: tuple[Match, ...] = ()


def user_key(user_name: str) -> str:
    """By what `userName` is compared: without case (RFC 7643 section 4.1.1)."""
    return normalize("NFC", normalize("NFC", user_name).lower())


def person_of_user(user: DirectoryUser, rule: OffboardingRule | None) -> NamedPerson:
    """The person that the directory tells of, as far as the tenant's rule says what its attributes mean."""
    if rule is None:
        return NamedPerson(user_id=user.id, email=user.email)
    sub = user.attribute(rule.sub_from) if rule.issuer is not None else None
    return NamedPerson(
        user_id=user.id,
        email=user.email,
        ruled=user.attribute(rule.subject_from),
        issuer=None if sub is None else rule.issuer,
        sub=sub,
    )


def matches_of(
    person: NamedPerson, issuer: str | None, logins: Iterable[tuple[str, LoginRule]]
) -> tuple[Match, ...]:
    """The subjects that are the person's. `logins`: of each integration with the binding `oidc`, where its
    subjects log in; `issuer`: the tenant's own, whose verified addresses the directory knows."""
    matches: list[Match] = []
    if person.subject is not None:
        matches.append(Match(subject=person.subject, by=MatchedBy.ORDER))
    if person.ruled is not None:
        matches.append(Match(subject=person.ruled, by=MatchedBy.RULE))
    for integration, login in logins:
        subject = _subject_at(login, person, issuer)
        if subject is not None:
            matches.append(Match(subject=subject, integration=integration, by=MatchedBy.LOGIN))
    return tuple(dict.fromkeys(matches))


def _subject_at(login: LoginRule, person: NamedPerson, issuer: str | None) -> str | None:
    """Whom the login would take the person for; None: for nobody."""
    if login.claim is LoginClaim.SUB:
        return person.sub if login.issuer is not None and login.issuer == person.issuer else None
    if person.email is None or issuer is None or login.issuer != issuer:
        return None
    local, _, domain = person.email.rpartition("@")
    return f"{local}@{domain.lower()}" if domain.lower() in login.domains else None
