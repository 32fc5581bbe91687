"""How a consent ends, and what it changes on its connection."""

from activities.support.provider_context import ProviderContext
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode
from evergrant_server.store import Transaction


async def end_consent(
    tx: Transaction, consent: Consent, status: ConsentStatus, failure: ErrorCode | None = None
) -> None:
    """Write how a consent ended, and erase its secrets."""
    ended = consent.model_copy(update={"status": status, "failure": failure})
    await tx.consents.erase_secrets(await tx.consents.replace(ended, expected=consent.revision))


async def end_unless_done(
    tx: Transaction, consent: Consent, status: ConsentStatus, failure: ErrorCode | None = None
) -> None:
    """As `end_consent`, on the stored row; a consent whose grant is installed stays done."""
    current = await tx.consents.get(consent.tenant, consent.id)
    if current is not None and current.status is not ConsentStatus.DONE:
        await end_consent(tx, current, status, failure)


def after_consent(granted: Connection, consent: Consent, context: ProviderContext) -> Connection:
    """The connection with what was consented to, which the next consent asks for as well."""
    looks_up = context.spec.post_auth and granted.flow.is_bearer
    changes = {
        "requested_scopes": consent.scopes,
        "slot_scopes": granted.slot_scopes | consent.slot_scopes,
        "follow_up": FollowUp.LOOKING_UP if looks_up else None,
    }
    return granted.model_copy(update=changes)
