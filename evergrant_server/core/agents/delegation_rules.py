"""Which tokens of a trusted issuer let which apps act for a person. Pure.

That an issuer is trusted says whose tokens are genuine. It is no consent: a rule says who may be an actor.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from pydantic import Field

from evergrant_server.core.connections.login import LoginClaim
from evergrant_server.core.ids import AppId, DelegationRuleId, TenantRow, TrustedIssuerId
from evergrant_server.core.text import is_storable_text
from evergrant_server.core.workloads.issuer import IssuerKind

MOST_RULES = 50  # of a tenant
PERSONS_ISSUERS = (IssuerKind.OIDC, IssuerKind.AZURE, IssuerKind.GCP)  # the others sign for workloads alone
_LONGEST_SUBJECT = 255


class SubjectTokenKind(StrEnum):
    """What a person's token is at its issuer: its `aud` is a client (id token), or an API (access token). An
    ID-JAG is a grant of access here for one client: its `aud` is Evergrant's issuer."""

    ID_TOKEN = "id_token"
    ACCESS_TOKEN = "access_token"
    ID_JAG = "id_jag"


class DelegationRule(TenantRow):
    """Tokens of one issuer, one kind and one audience.

    `claim` names the subject, of `domains` if it is an email address. Who may act: with `may_act` the app
    that the token's claim `may_act` names; the apps of `actors`, for every person; the app that `clients` has
    for the client that the person's token was issued to.
    """

    id: DelegationRuleId
    name: str
    issuer_id: TrustedIssuerId
    token_type: SubjectTokenKind
    audience: str
    claim: LoginClaim = LoginClaim.SUB
    domains: tuple[str, ...] = ()
    may_act: bool = False
    actors: tuple[AppId, ...] = ()
    clients: dict[str, AppId] = Field(default_factory=dict)
    created_at: datetime
    changed_at: datetime

    def accepts(self, issuer: TrustedIssuerId, kind: SubjectTokenKind, claims: Mapping[str, Any]) -> bool:
        """Whether a token of this issuer is one that the rule is about. It must be for one audience alone."""
        mine = (self.issuer_id, self.token_type) == (issuer, kind)
        return mine and claims.get("aud") in (self.audience, [self.audience])


def actor_problem(
    rule: DelegationRule, claims: Mapping[str, Any], app: AppId, *, issuer: str, ours: str
) -> str | None:
    """Why this app may not act for the token's person; None if it may.

    `may_act` in a token holds beside what the rule says (RFC 8693 section 4.4): `iss` is ours and `sub`
    the app's id, or `iss` is the token's issuer and `sub` a client of the rule.
    """
    if "act" in claims:  # another actor's token (section 4.1)
        return "the token is that of an actor already: a person's own is needed"
    named = claims.get("may_act")
    if named is not None:
        return None if rule.may_act and _named(rule, named, issuer, ours) == app else "may_act isn't this app"
    if app in rule.actors:
        return None
    client = claims.get("azp") or claims.get("client_id")
    if client is None and rule.token_type is SubjectTokenKind.ID_TOKEN:
        client = rule.audience
    if isinstance(client, str) and rule.clients.get(client) == app:
        return None
    return "the rule doesn't let this app act for the token's person"


def _named(rule: DelegationRule, may_act: object, issuer: str, ours: str) -> str | None:
    if not isinstance(may_act, Mapping):
        return None
    members = cast("Mapping[str, object]", may_act)
    iss, sub = members.get("iss"), members.get("sub")
    if not isinstance(sub, str):
        return None
    return sub if iss == ours else rule.clients.get(sub) if iss == issuer else None


def person_of(rule: DelegationRule, claims: Mapping[str, Any]) -> str | None:
    """The subject that a token names, as connections name it; None for what can't be one."""
    name = claims.get(rule.claim)
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_SUBJECT or name == "*":
        return None
    if not is_storable_text(name) or not name.isprintable() or name != name.strip():
        return None
    if rule.claim is LoginClaim.SUB:
        return name
    local, _, domain = name.rpartition("@")
    verified = claims.get("email_verified") is True and domain.lower() in rule.domains
    return f"{local}@{domain.lower()}" if verified else None
