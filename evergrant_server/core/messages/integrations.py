"""What crosses Temporal for an integration: discovery, receiver keys, requests ahead of a browser, retries
after a change, and the rollout of its provider's definition.

The API makes no outbound call (ADR 0008), so a worker makes these for it. No secrets.
"""

from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import (
    AppId,
    ConnectionId,
    ConsentId,
    DefinitionId,
    IntegrationId,
    OutboxId,
    PersonLoginId,
    ReceiverId,
    Tenant,
)
from evergrant_server.core.messages.base import Message, Provenance, RequestMessage


class DiscoverEndpoints(RequestMessage):
    """Read an issuer's metadata and pin it (RFC 8414 section 3)."""

    tenant: Tenant
    integration_id: IntegrationId


class DiscoveryResult(Message):
    failure: ErrorCode | None = None
    detail: str = ""


class FetchReceiverKeys(RequestMessage):
    """Read the public keys of a receiver's transmitter, and pin them (RFC 7517)."""

    tenant: Tenant
    receiver_id: ReceiverId


class ReceiverKeysResult(Message):
    keys: int = 0
    problem: str | None = None


class PushAuthorizationRequest(RequestMessage):
    """Push what the consent holds (RFC 9126 section 2), if it is still at `revision`."""

    tenant: Tenant
    connection_id: ConnectionId
    consent_id: ConsentId
    revision: int


class PushResult(Message):
    """The outcome, for the history: neither the reference nor a field."""

    failure: ErrorCode | None = None
    superseded: bool = False


class RequestTemporaryCredentials(RequestMessage):
    """Request temporary credentials (RFC 5849 section 2.1) and keep them with the consent."""

    tenant: Tenant
    consent_id: ConsentId
    revision: int  # of the consent as the browser began with it


class TemporaryCredentialsResult(Message):
    """`failure` None: the browser may go on."""

    failure: ErrorCode | None = None
    detail: str = ""
    retry_after: float | None = None  # seconds


class VerifyLogin(RequestMessage):
    """Exchange the code of a login, which the consent holds at `revision`, and compare who logged in."""

    tenant: Tenant
    consent_id: ConsentId
    revision: int


class LoginResult(Message):
    """`failure` None: the browser may go on to the provider. Never who logged in."""

    failure: ErrorCode | None = None
    detail: str = ""
    retry_after: float | None = None  # seconds


class VerifyPerson(RequestMessage):
    """Exchange the code of the login of a person who administers, and write down who it is, and the role."""

    tenant: Tenant
    login_id: PersonLoginId
    revision: int


class ReadClientDocument(RequestMessage):
    """Read the metadata document of an OAuth client, whose id is its URL, and keep what it says."""

    tenant: Tenant  # the installation's own, whose row it is
    client_id: str


class ClientDocumentResult(Message):
    failure: ErrorCode | None = None
    detail: str = ""


class RetryConnections(RequestMessage):
    """Have failing connections try again: those of an integration, or those for which tokens are
    exchanged in an app's name. `id` is the change's; each connection is signalled once for it."""

    tenant: Tenant
    id: OutboxId
    version: int  # of the row that was changed
    integration_id: IntegrationId | None = None
    source_app: AppId | None = None


class RetryConnectionsResult(Message):
    """Counts, and how far the walk has come: a worker that takes it over goes on from there."""

    signalled: int = 0
    after: ConnectionId | None = None  # the last connection of the last page


class RolloutStart(RequestMessage):
    """The input of a rollout's run."""

    tenant: Tenant
    definition_id: DefinitionId
    provider: str
    check_interval_s: float  # seconds between two evaluations of a stage


class DefinitionDecided(RequestMessage):
    """An admin has decided; the decision is in the store."""


class RollBackDefinition(RequestMessage):
    """An admin goes back to the version before."""

    reason: str


class DefinitionCall(RequestMessage):
    """What the activities of a rollout take."""

    tenant: Tenant
    definition_id: DefinitionId
    provenance: Provenance
    roll_back: str | None = None  # the admin's reason
    overdue: bool = False  # no admin decided in time


class DefinitionResult(Message):
    state: DefinitionState
    share: float = 0
    succeeded: int = 0
    failed: int = 0
    decided: bool = False  # an admin has decided
    next_check_s: float | None = None  # held without evidence: evaluated this rarely


class RolloutResult(Message):
    state: DefinitionState
