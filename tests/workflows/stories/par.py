"""Stories of authorization requests that are pushed to the provider."""

from temporalio.client import Client

from evergrant_server.core.ids import ConnectionId, ConsentId, Tenant
from evergrant_server.core.messages.base import WorkflowName, pushed_authorization_workflow_id
from evergrant_server.core.messages.integrations import PushAuthorizationRequest
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Life, a_start, a_worker


async def request_pushed(client: Client) -> Life:
    """A browser waits for it; no connection's life."""
    async with a_worker(client, scripted := ScriptedActivities(), "queue-push"):
        order = PushAuthorizationRequest(
            tenant=Tenant("acme"),
            connection_id=ConnectionId("con_0000000000000000000000"),
            consent_id=ConsentId("cns_0000000000000000000000"),
            revision=2,
            context=ASKED,
        )
        await client.execute_workflow(
            WorkflowName.PUSHED_AUTHORIZATION,
            order,
            id=pushed_authorization_workflow_id(order.tenant, order.consent_id, order.revision),
            task_queue="queue-push",
        )
        return Life(
            client.get_workflow_handle(
                pushed_authorization_workflow_id(order.tenant, order.consent_id, order.revision)
            ),
            scripted,
            a_start(),
        )
