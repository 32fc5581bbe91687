"""The fake's connections: what a test can do to one, and how the server would show it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from secrets import token_urlsafe

from evergrant.models import State

LIFETIME = timedelta(hours=1)
CONSENT_WITHIN = timedelta(hours=1)


@dataclass
class FakeConnection:
    """One subject's grant at the fake. Every change takes effect with the next request."""

    id: str
    integration: str
    subject: str
    label: str
    now: Callable[[], datetime] = field(repr=False)
    url: str  # the fake's, for connect links
    lifetime: timedelta | None = LIFETIME
    scopes: tuple[str, ...] = ()
    state: State = State.PENDING_CONSENT
    generation: int = 0
    token: str = field(default="", repr=False)
    expires_at: datetime | None = None
    reason: str | None = None
    link: str = field(default="", repr=False)
    link_expires_at: datetime | None = None
    leases: int = 0  # how often it was leased
    refuses_refresh: bool = False
    token_type: str = "Bearer"  # "DPoP": each request needs a proof (RFC 9449), which says what it is for
    events: list[tuple[datetime, str]] = field(default_factory=list[tuple[datetime, str]])

    def consent(self) -> None:
        """The subject consents: there is a grant from now on."""
        self._move(State.ACTIVE, None, "connection.consented")
        self.link, self.link_expires_at = "", None
        self.rotate()

    def deny(self) -> None:
        """The subject says no, for good."""
        self._move(State.DENIED, "consent_denied", "connection.denied")

    def rotate(self, token: str | None = None) -> str:
        """A newer grant, as a refresh makes it; returns its token. The old one is no longer leased."""
        self.generation += 1
        self.token = token or f"fake-{self.id}-{self.generation}-{token_urlsafe(16)}"
        self.expires_at = None if self.lifetime is None else self.now() + self.lifetime
        self._note("grant.refreshed")
        return self.token

    def lose(self, reason: str = "grant_rejected") -> None:
        """The provider no longer accepts the grant: only the subject can help."""
        self._move(State.NEEDS_REAUTH, reason, "connection.needs_reauth")
        self.token, self.expires_at = "", None

    def revoke(self) -> None:
        """Revoked and confirmed. No lease leaves from now on."""
        self._move(State.REVOKED, "connection_revoked", "connection.revoked")
        self.token, self.expires_at = "", None

    def open_consent(self) -> str:
        """A new connect link, as `reauthorize` makes it."""
        if not self.link:
            self.link = f"{self.url}/connect/{token_urlsafe(24)}"
            self.link_expires_at = self.now() + CONSENT_WITHIN
        return self.link

    def refresh_if_due(self, min_ttl: timedelta) -> None:
        """Refresh a grant that has expired, or would within `min_ttl`, as the server would."""
        ends = self.expires_at
        if ends is not None and ends - self.now() <= min_ttl and not self.refuses_refresh:
            self.rotate()

    @property
    def valid(self) -> bool:
        return bool(self.token) and (self.expires_at is None or self.now() < self.expires_at)

    def _move(self, state: State, reason: str | None, action: str) -> None:
        self.state, self.reason = state, reason
        self._note(action)

    def _note(self, action: str) -> None:
        self.events.append((self.now(), action))


def connection_body(it: FakeConnection, *, link: bool = False) -> dict[str, object]:
    """As `GET /v1/connections/{id}` shows it."""
    changed = it.events[-1][0] if it.events else it.now()
    body: dict[str, object] = {
        "id": it.id,
        "integration": it.integration,
        "provider": "fake",
        "subject": it.subject,
        "label": it.label,
        "state": it.state.value,
        "generation": it.generation,
        "scopes": list(it.scopes),
        "expires_at": rfc3339(it.expires_at),
        "reason": it.reason,
        "repairer": "subject" if it.reason else None,
        "created_at": rfc3339(it.events[0][0] if it.events else changed),
        "changed_at": rfc3339(changed),
    }
    if link:
        body |= {"connect_url": it.open_consent(), "connect_expires_at": rfc3339(it.link_expires_at)}
    return body


def live_body(it: FakeConnection) -> dict[str, object]:
    """As its workflow would describe itself: the fake's never differs from the store."""
    return {
        "state": it.state.value,
        "generation": it.generation,
        "expires_at": rfc3339(it.expires_at),
        "reason": it.reason,
        "repairer": "subject" if it.reason else None,
        "failures": 0,
        "next_step": "refresh due" if it.state is State.ACTIVE else "wait",
        "next_at": rfc3339(it.expires_at),
        "failed": None,
        "failing_since": None,
    }


def rfc3339(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
