"""A missing consent, and what binds one to a session with the app; the states of connections and requests."""

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any

from evergrant.errors import ReconnectNeeded


@dataclass(frozen=True, slots=True)
class ConsentRequired:
    """The subject has to open `connect_url`: there is no grant, or it lacks `missing_scopes`.

    The link ends at a page with the code for `Evergrant.confirm`; a web app uses `connect` with `return_to`
    instead, or `evergrant.web`. It is for the subject alone, so `repr` leaves it out. It expires at
    `expires_at`, None when the server doesn't say.
    """

    connect_url: str = field(repr=False)
    connection_id: str
    expires_at: datetime | None
    missing_scopes: tuple[str, ...] = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name == "access_token":
                raise AttributeError(
                    "ConsentRequired has no access_token: the subject has to consent first, at connect_url. "
                    "Tell the two answers apart: match, or isinstance(answer, Lease)"
                )
            raise AttributeError(f"'ConsentRequired' object has no attribute {name!r}")

    def as_error(self) -> ReconnectNeeded:
        """The same answer as an exception. Its message has no link."""
        wider = f" to {' '.join(self.missing_scopes)}" if self.missing_scopes else ""
        return ReconnectNeeded(
            f"{self.connection_id} waits for its subject's consent{wider}",
            code="scope_not_granted" if self.missing_scopes else None,
            context={"connection_id": self.connection_id, "connect_url": self.connect_url},
        )


class State(StrEnum):
    """The state of a connection."""

    PENDING_CONSENT = "pending_consent"
    ACTIVE = "active"
    NEEDS_REAUTH = "needs_reauth"
    REVOKING = "revoking"
    REVOKED = "revoked"
    CONSENT_EXPIRED = "consent_expired"
    DENIED = "denied"

    @property
    def final(self) -> bool:
        """Whether the connection has ended; a new consent is then a new connection."""
        return self in (State.REVOKED, State.CONSENT_EXPIRED, State.DENIED)


@dataclass(frozen=True, slots=True)
class Provider:
    """An entry of the catalogue; `facts` holds all members of the server's answer."""

    name: str
    facts: Mapping[str, Any] = field(repr=False)


class Decision:
    """A request that a person decides."""

    __slots__ = ()
    state: str

    @property
    def is_waiting(self) -> bool:
        return self.state == "waiting"

    @property
    def is_approved(self) -> bool:
        return self.state == "approved"


def new_verifier() -> tuple[str, str]:
    """A verifier that binds a consent to a session with the app, and its challenge.

    Keep the verifier in the person's session with your app; give the challenge to `connect`,
    `reauthorize` or `lease`, and the verifier to `confirm`.
    """
    verifier = token_urlsafe(32)
    return verifier, challenge_of(verifier)


def challenge_of(verifier: str) -> str:
    """S256 of RFC 7636 section 4.2."""
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
