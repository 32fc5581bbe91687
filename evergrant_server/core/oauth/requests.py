"""One authorization request on its way through a browser, the browser's session, and what was agreed to."""

from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.ids import (
    AuthorizationRequestId,
    ClientConsentId,
    ConsentId,
    SessionId,
    TenantRow,
)
from evergrant_server.core.oauth.authorizations import Authorization
from evergrant_server.core.people.roles import Person

SCOPES = ("mcp",)  # a token reaches its resource: what it may do there the app's permits say
REQUEST_LASTS = timedelta(minutes=10)
SUBJECT_SESSION_LASTS = timedelta(hours=12)
CODE_LASTS = timedelta(minutes=1)


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
    redirect_uri: str
    challenge: str
    state: str | None = None  # the client's, given back to it
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
