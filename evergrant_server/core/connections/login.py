"""The login that binds a consent to its subject, at the tenant's OpenID Connect issuer. Pure.

For apps without web sessions: the browser goes to the provider only after its person has logged in as the
connection's subject (draft-ietf-oauth-security-topics-update section 2.3.2).
"""

import hmac
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.model import FrozenModel
from evergrant_server.core.text import is_storable_text

ENDS_CONSENT = (ErrorCode.ID_TOKEN_REFUSED, ErrorCode.SUBJECT_MISMATCH)  # others leave the link usable
_LONGEST_NAME = 255  # of what an audit record says


class LoginClaim(StrEnum):
    """The claim that has to be the subject's name (OpenID Connect Core 1.0 section 5.1)."""

    SUB = "sub"
    EMAIL = "email"  # verified, of a listed domain


class LoginRule(FrozenModel):
    """Where an integration's subjects log in, and which claim names them."""

    integration: str  # our client at the tenant's issuer, which is an integration itself
    issuer: str | None = None  # pinned: who administers that integration alone can't name other persons
    claim: LoginClaim = LoginClaim.SUB
    domains: tuple[str, ...] = ()  # of email addresses, in lower case

    @property
    def scopes(self) -> tuple[str, ...]:
        return ("openid", "email") if self.claim is LoginClaim.EMAIL else ("openid",)


def must_log_in(consent: Consent) -> bool:
    """True for a consent whose browser may not go to the provider yet."""
    return consent.binding is Binding.OIDC and consent.confirmed_at is None


def logged_in(consent: Consent, now: datetime) -> Consent:
    """The consent after its subject's login: its browser, and no other one, may go to the provider."""
    return consent.__replace__(confirmed_at=now, nonce_hash=None)


def judge_login(rule: LoginRule, claims: Mapping[str, object], subject: str) -> str | None:
    """Why the person with these claims isn't the subject; None for the subject."""
    name, why = named_subject(rule, claims)
    if name is None:
        return why
    return None if is_same_subject(rule, name, subject) else "another subject"


def named_subject(rule: LoginRule, claims: Mapping[str, object]) -> tuple[str | None, str | None]:
    """The subject that these claims name, or why they name none."""
    name = claims.get(rule.claim)
    if not isinstance(name, str) or not name:
        return None, f"the issuer names no {rule.claim}"
    if rule.claim is LoginClaim.SUB:
        return name, None
    if claims.get("email_verified") is not True:
        return None, "the email address isn't verified"
    if name.rpartition("@")[2].lower() not in rule.domains:
        return None, "the email address is of another domain"
    return _plain_email(name), None


def is_subject_name(text: str) -> bool:
    """Whether connections can have a subject of this name."""
    return text.isprintable() and text == text.strip() and text != "*" and 0 < len(text) <= _LONGEST_NAME


def is_same_subject(rule: LoginRule, first: str, second: str) -> bool:
    if rule.claim is LoginClaim.EMAIL:
        first, second = _plain_email(first), _plain_email(second)
    return _same(first, second)


def claimed_subject(rule: LoginRule, claims: Mapping[str, object]) -> str | None:
    """Who logged in, for the audit log; None for what no record can hold."""
    name = claims.get(rule.claim)
    known = isinstance(name, str) and len(name) <= _LONGEST_NAME and is_storable_text(name)
    return str(name) if known else None


def _plain_email(address: str) -> str:
    """With the domain in lower case: that of the local part is the mailbox's own matter (RFC 5321 section
    2.4)."""
    local, _, domain = address.rpartition("@")
    return f"{local}@{domain.lower()}"


def _same(first: str, second: str) -> bool:
    return hmac.compare_digest(
        first.encode("utf-8", "surrogatepass"), second.encode("utf-8", "surrogatepass")
    )
