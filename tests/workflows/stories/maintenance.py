"""Stories of the passes, rollouts and deliveries that have workflows of their own."""

from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from temporalio.client import Client, WorkflowHandle

from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.ids import ReceiverId, Tenant
from evergrant_server.core.messages.base import ActivityName, WorkflowName, receiver_keys_workflow_id
from evergrant_server.core.messages.integrations import FetchReceiverKeys
from evergrant_server.core.messages.maintenance import IntrospectGrants, ReconcileRequest, RereadMetadata
from evergrant_server.core.messages.webhooks import DeliveryRound
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Life, a_start, a_worker
from tests.workflows.rollout_runs import FOREVER, ScriptedRollout, decided, running_rollout, wanted_back
from tests.workflows.webhook_runs import delivering, until_called


class Lived(Protocol):
    """What has a history: a connection's life, or a webhook's."""

    handle: WorkflowHandle[Any, Any]


async def reconciled(client: Client) -> Life:
    """What the schedule starts."""
    scripted = ScriptedActivities()
    async with a_worker(client, scripted, "queue-reconcile"):
        await client.execute_workflow(
            WorkflowName.RECONCILE, ReconcileRequest(), id="evergrant:reconcile", task_queue="queue-reconcile"
        )
        return Life(client.get_workflow_handle("evergrant:reconcile"), scripted, a_start())


async def metadata_read_again(client: Client) -> Life:
    """What the schedule starts."""
    scripted = ScriptedActivities()
    async with a_worker(client, scripted, "queue-reread"):
        handle = await client.start_workflow(
            WorkflowName.REREAD_METADATA,
            RereadMetadata(),
            id="evergrant:reread-metadata",
            task_queue="queue-reread",
        )
        await handle.result()
        return Life(handle, scripted, a_start())


async def looked_elsewhere(client: Client) -> Life:
    """What the schedule starts."""
    scripted = ScriptedActivities()
    async with a_worker(client, scripted, "queue-elsewhere"):
        name = "evergrant:look-elsewhere"
        await client.execute_workflow(
            WorkflowName.INTROSPECTION, IntrospectGrants(), id=name, task_queue="queue-elsewhere"
        )
        return Life(client.get_workflow_handle(name), scripted, a_start())


async def keys_fetched(client: Client) -> Life:
    async with a_worker(client, scripted := ScriptedActivities(), "queue-keys"):
        receiver_id = ReceiverId("rcv_0000000000000000000000")
        order = FetchReceiverKeys(tenant=Tenant("acme"), receiver_id=receiver_id, context=ASKED)
        name = receiver_keys_workflow_id(Tenant("acme"), receiver_id)
        await client.execute_workflow(
            WorkflowName.FETCH_RECEIVER_KEYS, order, id=name, task_queue="queue-keys"
        )
        return Life(client.get_workflow_handle(name), scripted, a_start())


async def onboarded_in_stages(client: Client) -> Life:
    scripted = ScriptedRollout(
        DefinitionState.WAITING, DefinitionState.STAGED, DefinitionState.STAGED, DefinitionState.ACTIVE
    )
    async with running_rollout(client, scripted) as handle:
        await decided(handle)
        await handle.result()
        return Life(handle, ScriptedActivities(), a_start())


async def onboarding_rolled_back(client: Client) -> Life:
    scripted = ScriptedRollout(DefinitionState.WAITING, DefinitionState.STAGED)
    async with running_rollout(client, scripted, watch_s=FOREVER) as handle:
        await decided(handle)
        await wanted_back(handle)
        await handle.result()
        return Life(handle, ScriptedActivities(), a_start())


async def told_to_a_receiver_that_was_down(client: Client) -> Lived:
    """Full rounds, a pause that only a person cuts, a timer that ends one, and events meanwhile."""
    scripted = ScriptedActivities()
    now = datetime.now(UTC)
    paused = DeliveryRound(failed=1, next_at=now + timedelta(hours=1), paused=True)
    soon = DeliveryRound(failed=1, next_at=now + timedelta(seconds=4), paused=True)
    scripted.answers[ActivityName.DELIVER_WEBHOOKS] = [
        DeliveryRound(delivered=20, next_at=now),
        paused,
        soon,
        DeliveryRound(delivered=1),
    ]
    async with delivering(client, scripted.everything()) as told:
        await told.wake()
        await until_called(scripted, 2)
        await told.wake()
        await told.wake(at_once=True)
        await until_called(scripted, 4)
        await told.wake()
        await until_called(scripted, 5)
        return told
