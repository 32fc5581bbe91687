"""One login of a person, from its button to the session."""

from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.ids import (
    AdminLoginId,
    ClientLoginId,
    IntegrationId,
    PersonLoginId,
    Tenant,
    TenantRow,
)
from evergrant_server.core.model import FrozenModel
from evergrant_server.core.people.roles import Person, PersonRole

LOGIN_LASTS = timedelta(minutes=10)
COMMAND_CODE_LASTS = timedelta(minutes=1)


class LoginStatus(StrEnum):
    STARTED = "started"
    CODE_RECEIVED = "code_received"
    VERIFIED = "verified"  # by a worker; the browser may have its session
    CODE_GIVEN = "code_given"  # to the command that began it
    DONE = "done"
    FAILED = "failed"


class LoginPurpose(StrEnum):
    """What a person logs in for."""

    SESSION = "session"  # of a browser, to administer
    COMMAND = "command"  # the session of `evergrant login`, to administer
    CLIENT = "client"  # a subject session, to let an OAuth client act


class CommandStart(FrozenModel):
    """A login that `evergrant login` began: where its one-time code goes (RFC 8252 section 7.3)."""

    port: int
    state: str
    challenge: str  # S256 of a verifier that the command keeps (RFC 7636)


class LoginStart(FrozenModel):
    """What a person's browser asks for with the login's button."""

    tenant: Tenant
    step_up: bool = False
    command: CommandStart | None = None


class PersonLogin(TenantRow):
    """One login, from its button to the session."""

    id: PersonLoginId
    status: LoginStatus = LoginStatus.STARTED
    rule: AdminLoginId | ClientLoginId
    integration_id: IntegrationId
    state_hash: str | None
    nonce_hash: str
    browser_hash: str
    redirect_uri: str
    issuer: str
    token_endpoint: str
    step_up: bool = False
    command: CommandStart | None = None
    code_hash: str | None = None  # of the one-time code for a command
    person: Person | None = None
    role: PersonRole | None = None
    authenticated_at: datetime | None = None
    created_at: datetime
    expires_at: datetime
    authorize: str | None = None  # the query of the authorization request for which a subject logs in
    subject: str | None = None  # who that is, by the rule of the tenant's clients

    @property
    def purpose(self) -> LoginPurpose:
        if self.authorize is not None:
            return LoginPurpose.CLIENT
        return LoginPurpose.SESSION if self.command is None else LoginPurpose.COMMAND
