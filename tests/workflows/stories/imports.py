"""Stories of connections that begin with an import."""

from temporalio.client import Client

from evergrant_server.core.messages import connection as m
from tests.workflows.connection_runs import ASKED, Handle, a_consent, living


async def imported_with_tokens_that_the_store_holds(client: Client) -> Handle:
    """The start brings the consent, so that the first task installs the tokens."""
    granted = m.LifecycleEvent(
        kind=m.EventKind.CONSENT_GRANTED, consent_id=a_consent().consent_id, context=ASKED
    )
    async with living(client, waiting=(granted,)) as life:
        await life.until(lambda d: d.generation == 1)
        await life.ensure_fresh(1)
        return life.handle
