"""A consent: one try of one subject to grant access, from link to code, with what it requests. Pure."""

import hashlib
import secrets
from datetime import datetime
from enum import StrEnum

from pydantic import Field

from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, ConsentId, IntegrationId, TenantRow, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.secret import SealableModel, Secret

LINK_BYTES = 32


def hash_link(link: str) -> str:
    """Finds the consent of a connect link."""
    return hashlib.sha256(link.encode()).hexdigest()


def hash_state(state: Secret) -> str:
    """Finds the consent of a callback, without keeping the state itself."""
    return hashlib.sha256(state.reveal().encode()).hexdigest()


def reference_of(consent_id: ConsentId) -> str:
    """What the subject of a failed consent names to an admin: half of its random id, which finds it."""
    begins = consent_id.removeprefix("cns_")
    return f"{begins[:5]}-{begins[5:10]}"


class ConsentStatus(StrEnum):
    OPEN = "open"  # the link exists and has not been followed
    STARTED = "started"  # a browser is bound, a state and a verifier exist
    CONFIRMING = "confirming"  # the app has to confirm the subject by `confirm_by`
    CODE_RECEIVED = "code_received"  # the callback came; the code waits for the worker
    DONE = "done"  # exchanged
    DENIED = "denied"
    FAILED = "failed"  # the provider refused the code or the client


class ConsentKind(StrEnum):
    """Where the tokens of a consent come from."""

    CODE = "code"  # from a code in the subject's browser
    IMPORT = "import"  # they came with the consent: by an import, or in a fragment
    DEVICE = "device"  # from a code that the subject types in on another device (RFC 8628)
    CLIENT_GRANT = "client_grant"  # from our own credentials, without a subject


class Consent(TenantRow):
    """The row, without its secrets: hashes identify link, state and browser.

    `issuer` and `token_endpoint` are recorded when the browser is sent away: code, verifier
    and secret go there and nowhere else (RFC 9700 section 4.4, RFC 9207 section 2.4).
    """

    id: ConsentId
    connection_id: ConnectionId
    integration_id: IntegrationId
    kind: ConsentKind = ConsentKind.CODE
    status: ConsentStatus = ConsentStatus.OPEN
    scopes: tuple[str, ...] = ()
    slot_scopes: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # further scopes, by token slot
    return_to: str | None = None
    link_hash: str
    state_hash: str | None = None
    nonce_hash: str | None = None  # of the nonce that the id token has to repeat
    browser_hash: str | None = None
    redirect_uri: str | None = None
    issuer: str | None = None
    token_endpoint: str | None = None
    failure: str | None = None  # a Code
    facts: dict[str, str] = Field(default_factory=dict)  # the callback's parameters beside the code, checked
    granted_scopes: tuple[str, ...] | None = None  # where the callback says which
    binding: Binding = Binding.NONE  # the integration's when the consent was requested
    app_id: AppId | None = None  # the app that requested it
    replaces_any: bool = False  # also another app's grant: an admin requested it, or the subject itself
    challenge: str | None = None  # S256 of a verifier that the app keeps in the subject's session
    confirm_hash: str | None = None  # of the confirm code that the browser took to the app
    confirm_by: datetime | None = None
    confirmed_at: datetime | None = None
    created_at: datetime
    expires_at: datetime
    by: str
    trace_id: str

    @classmethod
    def without_subject(
        cls,
        connection: Connection,
        kind: ConsentKind,
        scopes: tuple[str, ...],
        context: RequestContext,
        *,
        at: datetime,
        expires_at: datetime,
        app_id: AppId | None = None,
    ) -> "Consent":
        """A consent that no subject has to give: the worker uses it at once.

        No link leads to it: the hash is random.
        """
        return cls(
            tenant=connection.tenant,
            id=ConsentId(new_id("cns")),
            connection_id=connection.id,
            integration_id=connection.integration_id,
            kind=kind,
            status=ConsentStatus.CODE_RECEIVED,
            scopes=scopes,
            app_id=app_id,
            link_hash=hash_link(secrets.token_urlsafe(LINK_BYTES)),
            created_at=at,
            expires_at=expires_at,
            by=context.by,
            trace_id=context.trace_id,
        )

    @property
    def all_scopes(self) -> tuple[str, ...]:
        """The scopes of every token slot: what the subject is shown."""
        further = (scope for scopes in self.slot_scopes.values() for scope in scopes)
        return tuple(dict.fromkeys((*self.scopes, *further)))

    def is_current_start(self, revision: int) -> bool:
        """The click that left it at `revision` is the newest, and its callback hasn't come."""
        return self.status is ConsentStatus.STARTED and self.revision == revision

    def may_replace_grant(self, maker: AppId | None) -> bool:
        """Whether it may replace the grant of a connection that this app made. An import is an admin's, and
        a token slot's is its main consent's."""
        return self.replaces_any or self.app_id in (None, maker)

    @property
    def came_from_browser(self) -> bool:
        """True when a browser carried its code or tokens; if they fail, the subject must consent again."""
        return self.browser_hash is not None


class PushedAuthorization(SealableModel):
    """A pushed authorization request (RFC 9126).

    First `fields` alone; then a `request_uri` until `expires_at`, or the failure that came instead.
    The fields hold the state and the reference is as good as they are, so neither shows itself.
    """

    fields: tuple[tuple[str, str], ...] = Field(default=(), repr=False)
    request_uri: str | None = Field(default=None, repr=False)
    expires_at: datetime | None = None
    code: ErrorCode | None = None  # of the failure
    detail: str = ""

    @classmethod
    def failed(cls, failure: Failure) -> "PushedAuthorization":
        return cls(code=failure.code, detail=failure.detail)

    @property
    def failure(self) -> Failure | None:
        return None if self.code is None else Failure(self.code, self.detail)

    @property
    def is_answered(self) -> bool:
        return self.request_uri is not None or self.code is not None
