"""Requests for a connection that exists: may its settings stay, which link and consent to use."""

from dataclasses import dataclass

from evergrant_server.api.connections.models import ConnectionBody
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Transaction


@dataclass(frozen=True)
class ConnectionWithLink:
    """A connection, and its consent and connect link if the subject has to consent."""

    connection: Connection
    created: bool
    consent: Consent | None = None
    connect_url: str | None = None


def require_same_settings(there: Connection, wanted: ConnectionBody) -> None:
    """Raise Failure ALREADY_EXISTS if the request differs in a setting that a connection keeps for good.

    Otherwise the app would get tokens of another flow, resource or source than it requested.
    """
    target = wanted.target
    context = {
        "flow": (wanted.flow, there.flow),
        "source": (wanted.source, there.source),
        "resources": (set(target.resources) or None, set(there.target.resources)),
        "audience": (target.audience, there.target.audience),
        "subject_token_type": (target.subject_token_type, there.target.subject_token_type),
    }
    for name, (now, begun) in context.items():
        if now is not None and now != begun:
            detail = f"A live connection of these names has another {name}; use another label."
            raise Failure(ErrorCode.ALREADY_EXISTS, detail, field=name)


def is_reusable(consent: Consent, wanted: ConnectionBody, *, for_lease: bool) -> bool:
    """Whether an open link can be returned again: same scopes, slots and `return_to`.

    A link that a browser has opened works in that browser only. `POST /v1/connections` then creates
    a new link; a lease, which apps poll, returns the same.
    """
    if wanted.scopes is not None and not set(wanted.scopes) <= set(consent.scopes):
        return False
    if for_lease:
        return True
    if wanted.slot_scopes is not None and wanted.slot_scopes != consent.slot_scopes:
        return False
    begun = consent.status is not ConsentStatus.OPEN and consent.kind is not ConsentKind.DEVICE
    return not begun and consent.return_to == wanted.return_to


async def consenting_connection(tx: Transaction, connection: Connection) -> Connection:
    """The connection whose consents fill this one: itself, but for a further token slot.

    Raises Failure INVALID_REQUEST when that connection has ended.
    """
    if connection.consented_with is None:
        return connection
    first = await tx.connections.get(connection.tenant, connection.consented_with)
    if first is None or first.state is LifecycleState.REVOKING or first.state.is_final:
        label = first.label if first is not None else "default"
        detail = (
            f"It shares the consent of the connection with the label {label}, which has ended: connect that."
        )
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="label", connection_id=connection.id)
    return first
