"""What is wanted of a connection, and asking again where there is one: whose consent, by which link."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.imported_tokens import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec


@dataclass(frozen=True)
class ConnectionRequest:
    """A connection by its names, and what it should be able to do."""

    integration: str
    subject: str
    label: str
    scopes: tuple[str, ...] | None = None
    return_to: str | None = None
    for_lease: bool = False  # asked for by a lease, which takes whatever link there is
    flow: Flow | None = None  # None: as it is, or as the provider's definition says first
    target: TokenTarget = field(default_factory=TokenTarget)
    source: ConnectionId | None = None
    slot_scopes: Mapping[str, tuple[str, ...]] | None = None  # of further chains
    choice: str | None = None  # of the accounts that a new connection's grant may reach
    supplied_tokens: Callable[[ProviderSpec, Flow], ImportedTokens | None] = lambda spec, flow: None


@dataclass(frozen=True)
class ConnectionWithLink:
    """A connection and the link its subject can go on with; None when there is none to be had."""

    connection: Connection
    created: bool
    consent: Consent | None = None
    connect_url: str | None = None


def require_same_settings(there: Connection, wanted: ConnectionRequest) -> None:
    """Raises Failure ALREADY_EXISTS for what can't be changed by asking again: nobody may get a token of
    another flow, for another resource or from another source than he asked for."""
    target = wanted.target
    asked = {
        "flow": (wanted.flow, there.flow),
        "source": (wanted.source, there.source),
        "resources": (set(target.resources) or None, set(there.target.resources)),
        "audience": (target.audience, there.target.audience),
        "subject_token_type": (target.subject_token_type, there.target.subject_token_type),
    }
    for name, (now, begun) in asked.items():
        if now is not None and now != begun:
            detail = f"A live connection of these names was begun with another {name}; give it another label."
            raise Failure(ErrorCode.ALREADY_EXISTS, detail, field=name)


def scopes_to_request(wanted: ConnectionRequest, before: tuple[str, ...]) -> tuple[str, ...] | None:
    """Consenting again takes nothing away that the connection could do.

    A lease names what it needs of a connection that others use as well; who asks for a link by
    name and says which scopes, means these.
    """
    if wanted.scopes is None:
        return before or None
    return (*before, *wanted.scopes) if wanted.for_lease else wanted.scopes


def is_reusable(consent: Consent, wanted: ConnectionRequest) -> bool:
    """May an open link be handed out again? It must ask for enough and lead to the same place.

    A link that a browser has begun with works in that browser alone: who asks for a link by
    name gets a new one, a pipeline that polls for a lease doesn't.
    """
    if wanted.scopes is not None and not set(wanted.scopes) <= set(consent.scopes):
        return False
    if wanted.for_lease:
        return True
    if wanted.slot_scopes is not None and dict(wanted.slot_scopes) != consent.slot_scopes:
        return False
    begun = consent.status is not ConsentStatus.OPEN and consent.kind is not ConsentKind.DEVICE
    return not begun and consent.return_to == wanted.return_to


async def consenting_connection(tx: Transaction, connection: Connection) -> Connection:
    """The connection whose consents bring this one's grants: itself, but for a further chain of tokens.

    Raises Failure INVALID_REQUEST when that one has ended: a new one of its names takes this along.
    """
    if connection.consented_with is None:
        return connection
    first = await tx.connections.get(connection.tenant, connection.consented_with)
    if first is None or first.state is LifecycleState.REVOKING or first.state.is_final:
        label = first.label if first is not None else "default"
        detail = f"Its tokens came with the connection of the label {label}, which has ended: connect that."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="label", connection_id=connection.id)
    return first


async def unrevoked_slots(tx: Transaction, first: Connection) -> dict[str, tuple[str, ...]]:
    """Consenting again brings nothing back that was revoked."""
    kept: dict[str, tuple[str, ...]] = {}
    for chain, scopes in first.slot_scopes.items():
        label = first.label_of_slot(chain)
        found = await tx.connections.by_names(first.tenant, first.integration, first.subject, label)
        if found is None or found.state not in (LifecycleState.REVOKING, LifecycleState.REVOKED):
            kept[chain] = scopes
    return kept


async def set_expected_account(tx: Transaction, connection: Connection, choice: str | None) -> Connection:
    """Another account may be asked for until there is a grant. Raises Failure ALREADY_EXISTS."""
    if connection.state is not LifecycleState.PENDING_CONSENT:
        detail = "A live connection has these names: which account it is for is changed by choosing."
        raise Failure(ErrorCode.ALREADY_EXISTS, detail, field="choice")
    wanted = connection.model_copy(update={"choice": choice})
    return await tx.connections.replace(wanted, expected=connection.revision)


async def has_pending_import(tx: Transaction, connection: Connection) -> bool:
    if connection.state is not LifecycleState.PENDING_CONSENT:
        return False
    imported = await tx.consents.import_consent(connection.tenant, connection.id)
    return imported is not None and imported.status is ConsentStatus.CODE_RECEIVED
