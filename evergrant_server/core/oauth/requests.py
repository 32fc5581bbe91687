"""One authorization request on its way through a browser, the browser's session, and what was agreed to; the
request of a device that has no browser (RFC 8628)."""

from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.ids import (
    AuthorizationRequestId,
    ClientConsentId,
    ConnectionId,
    ConsentId,
    DeviceAuthorizationId,
    SessionId,
    TenantRow,
)
from evergrant_server.core.oauth.authorizations import Authorization
from evergrant_server.core.people.roles import Person

SCOPES = ("mcp",)  # a token reaches its resource: what it may do there the app's permits say
REQUEST_LASTS = timedelta(minutes=10)
SUBJECT_SESSION_LASTS = timedelta(hours=12)
CODE_LASTS = timedelta(minutes=1)
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"  # RFC 8628 section 3.4
DEVICE_CODE_LASTS = timedelta(minutes=10)
DEVICE_INTERVAL_S = 5  # between two polls (RFC 8628 section 3.2)
USER_CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no words, and nothing that looks alike (RFC 8628 section 6.1)
USER_CODE_LENGTH = 8  # 34 bits, which a person types within ten minutes
_EARLY_S = 1.0  # how much too early a poll may come


class RequestStatus(StrEnum):
    OPEN = "open"  # its page is shown
    AT_PROVIDER = "at_provider"  # approved; its person consents at the connection's provider
    DONE = "done"  # a code was given
    DENIED = "denied"


class AuthorizationRequest(Authorization):
    """A request whose person has logged in. It belongs to one browser, and is decided once. `client_id` is as
    the client presented it, with the registration that it carries."""

    id: AuthorizationRequestId
    status: RequestStatus = RequestStatus.OPEN
    redirect_uri: str  # of a device's request DEVICE_GRANT: it leads nowhere
    challenge: str
    state: str | None = None  # the client's, given back to it
    device_id: DeviceAuthorizationId | None = None
    session_id: SessionId
    browser_hash: str
    consent_id: ConsentId | None = None  # at the provider
    expires_at: datetime


class SubjectSession(TenantRow):
    """A subject that has logged in for clients. Of its secret, of 256 bits, only a hash is kept."""

    id: SessionId
    secret_hash: str
    rule: str
    subject: str
    person: Person
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        return self.ended_at is None and now < self.expires_at


class ClientConsent(TenantRow):
    """That a subject has agreed to a client, for one resource and one redirect URI. Its id is derived from
    these, so that there is one."""

    id: ClientConsentId
    client_id: str
    subject: str
    resource: str
    redirect_uri: str  # of a loopback address without its port
    rule: str
    created_at: datetime
    used_at: datetime


class DeviceStatus(StrEnum):
    WAITING = "waiting"
    ALLOWED = "allowed"
    DENIED = "denied"


class DeviceAuthorization(TenantRow):
    """What a client on a device without a browser asks for (RFC 8628 section 3.1). Of the device code, of 256
    bits, only a hash is kept; a person types the user code elsewhere. `interval_s` is between two polls."""

    id: DeviceAuthorizationId
    client_id: str
    resource: str
    connection_id: ConnectionId | None = None
    device_hash: str
    user_code: str
    status: DeviceStatus = DeviceStatus.WAITING
    interval_s: int = DEVICE_INTERVAL_S
    polled_at: datetime | None = None
    created_at: datetime
    expires_at: datetime

    def is_waiting(self, now: datetime) -> bool:
        return self.status is DeviceStatus.WAITING and now < self.expires_at

    def is_early(self, now: datetime) -> bool:
        """Whether a poll comes sooner than the interval allows."""
        if self.polled_at is None:
            return False
        return (now - self.polled_at).total_seconds() < self.interval_s - _EARLY_S


def shown_user_code(code: str) -> str:
    """A user code as people read it: `WDJB-MJHT`."""
    return f"{code[:4]}-{code[4:]}"


def typed_user_code(text: str) -> str | None:
    """The user code that a person typed, in whatever case and with whatever between; None for none."""
    letters = "".join(letter for letter in text.upper() if letter.isalnum())
    is_code = len(letters) == USER_CODE_LENGTH and set(letters) <= set(USER_CODE_LETTERS)
    return letters if is_code else None
