"""What the provider has to hear before a subject's browser comes (RFC 5849 section 2.1)."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.temporary_credentials import (
        ACTIVITY_REQUEST_TEMPORARY_CREDENTIALS,
        TEMPORARY_CREDENTIALS_WORKFLOW,
        RequestTemporaryCredentials,
        TemporaryCredentialsResult,
    )


@workflow.defn(name=TEMPORARY_CREDENTIALS_WORKFLOW)
class TemporaryCredentialsWorkflow:
    """The API makes no outbound call: it asks a worker, and a person waits for it."""

    @workflow.run
    async def run(self, order: RequestTemporaryCredentials) -> TemporaryCredentialsResult:
        return await workflow.execute_activity(
            ACTIVITY_REQUEST_TEMPORARY_CREDENTIALS,
            order,
            result_type=TemporaryCredentialsResult,
            summary=f"for {order.consent_id}",
            start_to_close_timeout=timedelta(seconds=60),
            retry_policy=RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=500)),
        )
