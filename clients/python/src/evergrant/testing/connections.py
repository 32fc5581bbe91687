"""The fake's clock and connections: what a test can do to one, and its JSON as the server would show it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from secrets import token_urlsafe
from threading import Lock

from evergrant.models import State, challenge_of

LIFETIME = timedelta(hours=1)
CONSENT_WITHIN = timedelta(hours=1)
CONFIRM_WITHIN = timedelta(minutes=2)


class ManualClock:
    """Call it for the time. Pass it as `clock` to the clients too, so that an hour passes for both."""

    def __init__(self, at: datetime | None = None) -> None:
        self._at = (at or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
        self._lock = Lock()

    def __call__(self) -> datetime:
        with self._lock:
            return self._at

    def advance(self, by: timedelta) -> None:
        with self._lock:
            self._at += by


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
    return_to: str | None = None
    challenge: str | None = None
    code: str = field(default="", repr=False)  # the one to confirm
    confirm_by: datetime | None = None
    confirmation: str | None = None
    leases: int = 0  # how many leases were handed out
    refuses_refresh: bool = False
    account: str | None = None  # the name that the provider gives to the account
    token_type: str = "Bearer"  # "DPoP": each request needs a proof (RFC 9449)
    events: list[tuple[datetime, str]] = field(default_factory=list[tuple[datetime, str]])

    def come_back(self) -> str:
        """The subject consents at the provider. Returns the code to confirm, within two minutes."""
        self.code, self.confirm_by = f"fake-code-{token_urlsafe(16)}", self.now() + CONFIRM_WITHIN
        self.confirmation = None
        self._note("consent.returned")
        return self.code

    def confirm(self, code: str, subject: str, verifier: str | None) -> str:
        """The app confirms the consent. Returns `confirmed`, or the error code of the refusal."""
        if self.confirm_by is None or code != self.code:
            return "not_found"
        if self.confirmation is None and self.confirm_by <= self.now():
            return "confirm_expired"
        if self.confirmation is None:
            same_session = self.challenge == (None if verifier is None else challenge_of(verifier))
            self.confirmation = (
                "confirmed" if same_session and subject == self.subject else "subject_mismatch"
            )
            self._note(f"consent.{self.confirmation}")
            if self.confirmation == "confirmed":
                self.consent()
            self.link = ""
        return self.confirmation

    def consent(self) -> None:
        """The subject consents and the app confirms: the connection has a grant from now on."""
        self._move(State.ACTIVE, None, "connection.consented")
        self.link, self.link_expires_at = "", None
        self.rotate()

    def deny(self) -> None:
        """The subject denies the consent. The connection has ended."""
        self._move(State.DENIED, "consent_denied", "connection.denied")

    def rotate(self, token: str | None = None) -> str:
        """Replace the grant, as a refresh does. Returns the new token; the old one is no longer leased."""
        self.generation += 1
        self.token = token or f"fake-{self.id}-{self.generation}-{token_urlsafe(16)}"
        self.expires_at = None if self.lifetime is None else self.now() + self.lifetime
        self._note("grant.refreshed")
        return self.token

    def lose(self, reason: str = "grant_rejected") -> None:
        """The provider no longer accepts the grant: the subject has to consent again."""
        self._move(State.NEEDS_REAUTH, reason, "connection.needs_reauth")
        self.token, self.expires_at = "", None

    def revoke(self) -> None:
        """The connection is revoked, and the provider has confirmed. No lease leaves from now on."""
        self._move(State.REVOKED, "connection_revoked", "connection.revoked")
        self.token, self.expires_at = "", None

    def open_consent(self, return_to: str | None = None, challenge: str | None = None) -> str:
        """The connect link, as `reauthorize` returns it. Other arguments than before make a new one."""
        if not self.link or (return_to, challenge) != (self.return_to, self.challenge):
            self.return_to, self.challenge = return_to, challenge
            self.link = f"{self.url}/connect/{token_urlsafe(24)}"
            self.link_expires_at = self.now() + CONSENT_WITHIN
        return self.link

    def refresh_if_due(self, min_ttl: timedelta) -> None:
        """Refresh a grant that has expired, or expires within `min_ttl`."""
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


def connection_body(connection: FakeConnection, *, link: bool = False) -> dict[str, object]:
    changed = connection.events[-1][0] if connection.events else connection.now()
    body: dict[str, object] = {
        "id": connection.id,
        "integration": connection.integration,
        "provider": "fake",
        "subject": connection.subject,
        "label": connection.label,
        "scopes": list(connection.scopes),
        "requested_scopes": list(connection.scopes),
        "account": connection.account,
        **_status(connection),
        "failures": 0,
        "last_failure": None,
        "last_failed_at": None,
        "failing_since": None,
        "revocation": None,
        "revoke_reason": None,
        "flow": "authorization_code",
        "created_at": rfc3339(connection.events[0][0] if connection.events else changed),
        "changed_at": rfc3339(changed),
        "revision": len(connection.events),
    }
    if link:
        body |= {"connect_url": connection.link, "connect_expires_at": rfc3339(connection.link_expires_at)}
    return body


def live_body(connection: FakeConnection) -> dict[str, object]:
    """The workflow's description, which in the fake never differs from the store."""
    return {
        **_status(connection),
        "failures": 0,
        "next_step": "refresh due" if connection.state is State.ACTIVE else "wait",
        "next_at": rfc3339(connection.expires_at),
        "failed": None,
        "failing_since": None,
    }


def _status(connection: FakeConnection) -> dict[str, object]:
    return {
        "state": connection.state.value,
        "generation": connection.generation,
        "expires_at": rfc3339(connection.expires_at),
        "reason": connection.reason,
        "repairer": "subject" if connection.reason else None,
    }


def rfc3339(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
