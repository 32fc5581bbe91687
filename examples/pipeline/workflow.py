"""The workflow: requests a fresh grant, waits for it, then fetches."""

from datetime import timedelta

from evergrant.temporal import TokenInbox
from temporalio import workflow

from examples.pipeline.messages import APP, SyncReport, SyncRequest


@workflow.defn
class SyncContacts(TokenInbox):
    """Reads a subject's contacts at a provider without holding their token."""

    @workflow.run
    async def run(self, order: SyncRequest) -> SyncReport:
        await self.token_for(order.connection, app=APP, timeout=timedelta(minutes=2))
        return await workflow.execute_activity(
            "fetch_contacts",
            order,
            result_type=SyncReport,
            start_to_close_timeout=timedelta(minutes=1),
            summary=f"contacts of {order.integration}",
        )
