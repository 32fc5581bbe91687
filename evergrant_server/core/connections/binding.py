"""Bindings: how it is checked that the person who consents is the connection's subject. Pure.

A connect link that another person opens would otherwise connect that person's account
(draft-ietf-oauth-security-topics-update section 2.3).
"""

import base64
import hashlib
import re
from enum import StrEnum


class Binding(StrEnum):
    """A member of integrations and a column of consents: add, never rename."""

    APP = "app"  # the app confirms who came back, from its own session, before the code is exchanged
    APP_FIRST = "app_first"  # the same before the browser goes to the provider
    OIDC = "oidc"  # the subject logs in at the tenant's issuer before the browser goes to the provider
    NONE = "none"  # unchecked; a setting of the operator allows it

    @property
    def needs_confirm(self) -> bool:
        """The app that requested the consent has to confirm the subject."""
        return self in (Binding.APP, Binding.APP_FIRST)


_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


def is_challenge(value: str) -> bool:
    """True for a SHA-256 hash in base64url without padding, as PKCE's S256 has it (RFC 7636 section 4.2)."""
    return _CHALLENGE.fullmatch(value) is not None


def challenge_of(verifier: str) -> str:
    """The S256 challenge of a verifier."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def hash_confirm_code(code: str) -> str:
    """Finds the consent of a confirm code, without keeping the code itself."""
    return hashlib.sha256(code.encode()).hexdigest()
