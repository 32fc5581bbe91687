"""The intent of a client registration: the integration's `registration_sent_at`, and its attempt's id."""

from datetime import datetime

from evergrant_server.core.ids import AttemptId, IntegrationId, Tenant, derived_id
from evergrant_server.journal.entry import EntryHeader
from evergrant_server.store import Transaction


def registration_attempt_id(integration_id: IntegrationId, sent_at: datetime) -> AttemptId:
    """The id of an intent's attempt."""
    return AttemptId(derived_id("att", integration_id, sent_at.isoformat()))


async def end_intent(
    tx: Transaction,
    tenant: Tenant,
    integration_id: IntegrationId,
    sent_at: datetime,
    since: datetime | None = None,
) -> None:
    """Withdraw an intent, or date it `since`."""
    current = await tx.integrations.get(tenant, integration_id)
    if current is not None and current.registration_sent_at == sent_at:
        after = current.model_copy(update={"registration_sent_at": since})
        await tx.integrations.replace(after, expected=current.revision)


async def drop_unsent_intent(tx: Transaction, header: EntryHeader) -> None:
    """Withdraw the intent of a worker that died before it sent."""
    integration_id = IntegrationId(header.connection_id)
    current = await tx.integrations.get(header.tenant, integration_id)
    sent_at = current.registration_sent_at if current is not None else None
    if sent_at is not None and registration_attempt_id(integration_id, sent_at) == header.attempt_id:
        await end_intent(tx, header.tenant, integration_id, sent_at)
