"""What the API writes to have first tokens requested without a subject."""

from evergrant_server.api.connections.consents import CLIENT_GRANT_DEADLINE, signal_granted
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentKind
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction


async def request_first_tokens(
    tx: Transaction, connection: Connection, scopes: tuple[str, ...], context: RequestContext
) -> None:
    at = connection.created_at
    consent = Consent.without_subject(
        connection, ConsentKind.CLIENT_GRANT, scopes, context, at=at, expires_at=at + CLIENT_GRANT_DEADLINE
    )
    await tx.consents.add(consent, None)
    await signal_granted(tx, connection, consent, context, at)
