"""Lives worth keeping: each is run once, and its history kept for replay.

`python -m tests.workflows.stories [NAME …]` records them into `histories/`; an existing file is never
overwritten, since a history that was once real must replay for ever. A change of the
workflow adds a story, or a second recording under a new name.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from temporalio.client import Client, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.device_code import DevicePoll
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ReceiverId, Tenant
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages.activities import GrantResult, RevocationResult
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import RevokedAtProvider
from evergrant_server.core.messages.integrations import FetchReceiverKeys
from evergrant_server.core.messages.maintenance import IntrospectGrants, ReconcileRequest, RereadMetadata
from evergrant_server.core.messages.names import (
    ActivityName,
    SignalName,
    UpdateName,
    WorkflowName,
    receiver_keys_workflow_id,
)
from evergrant_server.core.messages.webhooks import DeliveryRound
from evergrant_server.core.provider_events.external_revocation import ReportSource
from evergrant_server.temporal_link.namespace import prepare_namespace
from tests.fakes.scripted_activities import ScriptedActivities
from tests.fakes.temporal import running_temporal
from tests.workflows.asking_stories import asked_by_many_at_once, reported_while_an_answer_is_lost
from tests.workflows.choice_stories import accounts_looked_up_and_chosen
from tests.workflows.clock_stories import reported_when_over
from tests.workflows.late_stories import (
    answer_came_late,
    interim_exchanged,
    late_answers_one_after_another,
    tokens_read_beside_a_grant,
)
from tests.workflows.lives import ASKED, Life, a_consent, a_start, a_worker, living
from tests.workflows.onboardings import FOREVER, ScriptedOnboarding, decided, onboarding, wanted_back
from tests.workflows.push_stories import request_pushed
from tests.workflows.tellings import delivering, until_called

HISTORIES = Path(__file__).parent / "histories"
REFRESH = ActivityName.REFRESH_GRANT


class Lived(Protocol):
    """What has a history: a connection's life, or a webhook's."""

    handle: WorkflowHandle[Any, Any]


Story = Callable[[Client], Awaitable[Lived]]


async def whole_life(client: Client) -> Life:
    async with living(client) as life:
        await life.consent()
        await life.ensure_fresh(1)
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        await life.handle.result()
        return life


async def denied(client: Client) -> Life:
    async with living(client) as life:
        no = m.ConsentDenied(consent_id=a_consent().consent_id, context=ASKED)
        await life.handle.signal(SignalName.CONSENT_DENIED, no)
        await life.handle.result()
        return life


async def nobody_consented(client: Client) -> Life:
    async with living(client, consent_deadline=datetime.now(UTC) - timedelta(seconds=58)) as life:
        await life.handle.result()
        return life


async def outage_then_refused_then_reconnected(client: Client) -> Life:
    scripted = ScriptedActivities()
    async with living(client, scripted) as life:
        await life.consent()
        scripted.answers[REFRESH] += [
            GrantResult(failure=ErrorCode.PROVIDER_UNREACHABLE),
            GrantResult(failure=ErrorCode.PROVIDER_RATE_LIMITED, retry_after=1),
            GrantResult(failure=ErrorCode.GRANT_REJECTED),
        ]
        await life.ensure_fresh(1)
        await life.until(lambda d: d.state is LifecycleState.NEEDS_REAUTH)
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.state is LifecycleState.ACTIVE)
        return life


async def idle_then_kept_alive(client: Client) -> Life:
    scripted = ScriptedActivities(lifetime=timedelta(seconds=2), idle_s=8)
    scripted.answers[REFRESH].append(GrantResult(not_leased=True))
    async with living(client, scripted) as life:
        await life.consent()
        await life.until(lambda d: d.generation == 2)
        return life


async def asked_by_a_pipeline_while_revoking(client: Client) -> Life:
    scripted = ScriptedActivities()
    scripted.answers[ActivityName.REVOKE_GRANT].append(RevocationResult(failure=ErrorCode.PROVIDER_ERROR))
    async with living(client, scripted) as life:
        await life.consent()
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        ask = m.RequestToken(app="crm-sync", reply_to="a-pipeline-that-is-gone", context=ASKED)
        await life.handle.signal(SignalName.REQUEST_TOKEN, ask)
        await life.handle.result()
        return life


async def rotated_and_repaired(client: Client) -> Life:
    scripted = ScriptedActivities()
    async with living(client, scripted, policy="warm") as life:
        await life.consent()
        await life.handle.signal(SignalName.ROTATE, m.Rotate(reason="leak suspected", context=ASKED))
        await life.until(lambda d: d.generation == 2)
        scripted.answers[REFRESH].append(GrantResult(failure=ErrorCode.CLIENT_REJECTED))
        await life.ensure_fresh(2)
        await life.handle.signal(SignalName.PROVIDER_CHANGED, m.ProviderChanged(version=2, context=ASKED))
        await life.ensure_fresh(2)
        return life


async def revoked_elsewhere_then_reconnected(client: Client) -> Life:
    async with living(client) as life:
        await life.consent()
        over = RevokedAtProvider(
            generation=1, source=ReportSource.SECURITY_EVENT, context=RequestContext(by="provider")
        )
        await life.handle.signal(SignalName.REVOKED_AT_PROVIDER, over)
        await life.until(lambda d: d.state is LifecycleState.NEEDS_REAUTH)
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.state is LifecycleState.ACTIVE)
        return life


async def continued_as_new(client: Client) -> Life:
    """Recorded with the newest rules: a run that is as long as runs get."""
    async with living(client) as life:
        await life.consent()
        rotate = m.Rotate(reason="many", context=ASKED)
        await asyncio.gather(*(life.handle.signal(SignalName.ROTATE, rotate) for _ in range(330)))
        first = client.get_workflow_handle(life.handle.id, run_id=life.handle.first_execution_run_id)
        async with asyncio.timeout(120):
            while (await first.describe()).close_time is None:
                await asyncio.sleep(0.2)
        return Life(first, life.scripted, life.start)


async def cancelled_in_the_middle_of_a_refresh(client: Client) -> Life:
    """The refresh is finished, and another run goes on."""
    scripted = ScriptedActivities()
    async with living(client, scripted) as life:
        await life.consent()
        gate = asyncio.Event()
        scripted.answers[REFRESH].append(gate)
        asked = asyncio.create_task(life.ensure_fresh(1))
        async with asyncio.timeout(20):
            while scripted.count(REFRESH) == 0:
                await asyncio.sleep(0.02)
        await life.handle.cancel()
        gate.set()
        await asked
        first = client.get_workflow_handle(life.handle.id, run_id=life.handle.first_execution_run_id)
        async with asyncio.timeout(20):
            while (await first.describe()).close_time is None:
                await asyncio.sleep(0.05)
        return Life(first, scripted, life.start)


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
    scripted = ScriptedOnboarding(
        DefinitionState.WAITING, DefinitionState.STAGED, DefinitionState.STAGED, DefinitionState.ACTIVE
    )
    async with onboarding(client, scripted) as handle:
        await decided(handle)
        await handle.result()
        return Life(handle, ScriptedActivities(), a_start())


async def onboarding_rolled_back(client: Client) -> Life:
    scripted = ScriptedOnboarding(DefinitionState.WAITING, DefinitionState.STAGED)
    async with onboarding(client, scripted, watch_s=FOREVER) as handle:
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


async def minted_after_an_outage(client: Client) -> Life:
    """Nobody consents: the first token is asked for again by itself, the next ones are minted too."""
    scripted = ScriptedActivities()
    scripted.answers[ActivityName.REQUEST_CLIENT_GRANT].append(
        GrantResult(failure=ErrorCode.PROVIDER_UNREACHABLE)
    )
    async with living(client, scripted, flow="client_credentials") as life:
        await life.consent()
        await life.ensure_fresh(1)
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        await life.handle.result()
        return life


async def approved_on_another_device(client: Client) -> Life:
    """A code is asked about until it was approved: slower when told so, and when nothing is heard."""
    scripted = ScriptedActivities()
    scripted.answers[ActivityName.POLL_DEVICE_TOKEN] += [
        GrantResult(device_poll=DevicePoll.STARTED, interval_s=0.2),
        GrantResult(device_poll=DevicePoll.PENDING),
        GrantResult(device_poll=DevicePoll.NO_ANSWER),
    ]
    async with living(client, scripted, flow="device_code") as life:
        await life.consent()
        await life.ensure_fresh(1)
        return life


async def device_code_denied(client: Client) -> Life:
    scripted = ScriptedActivities()
    scripted.answers[ActivityName.POLL_DEVICE_TOKEN] += [
        GrantResult(device_poll=DevicePoll.STARTED, interval_s=0.2),
        GrantResult(failure=ErrorCode.CONSENT_DENIED, consent_over=True),
    ]
    async with living(client, scripted, flow="device_code") as life:
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.handle.result()
        return life


async def told_no_and_told_again(client: Client) -> Life:
    """A pipeline asks while the subject has to act; it is told at once, and again when there is a token."""
    scripted = ScriptedActivities()
    async with living(client, scripted) as life:
        await life.consent()
        scripted.answers[REFRESH].append(GrantResult(failure=ErrorCode.GRANT_REJECTED))
        await life.ensure_fresh(1)
        ask = m.RequestToken(app="crm-sync", reply_to="a-pipeline-that-is-gone", context=ASKED)
        await life.handle.signal(SignalName.REQUEST_TOKEN, ask)
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.generation == 2)
        return life


async def end_announced(client: Client) -> Life:
    """A grant that can't be refreshed lasts a day and a little: that is recorded, and a 401 reported."""
    scripted = ScriptedActivities(lifetime=timedelta(days=1, seconds=2))
    now = datetime.now(UTC)
    scripted.answers[ActivityName.EXCHANGE_CODE].append(
        GrantResult(
            state=LifecycleState.ACTIVE,
            generation=1,
            obtained_at=now,
            expires_at=now + timedelta(days=1, seconds=2),
        )
    )
    async with living(client, scripted) as life:
        await life.consent()
        async with asyncio.timeout(30):
            while not scripted.count(ActivityName.ANNOUNCE_EXPIRY):
                await asyncio.sleep(0.1)
        scripted.generation = 1
        for generation in (1, 2):  # the second is declined
            report = m.EnsureFresh(
                seen_generation=generation, context=ASKED, refresh_reason=m.RefreshReason.UNAUTHORIZED
            )
            await life.handle.execute_update(UpdateName.ENSURE_FRESH, report, result_type=m.EnsureFreshResult)
        return life


STORIES: dict[str, Story] = {
    story.__name__: story
    for story in (
        accounts_looked_up_and_chosen,
        answer_came_late,
        approved_on_another_device,
        asked_by_a_pipeline_while_revoking,
        asked_by_many_at_once,
        cancelled_in_the_middle_of_a_refresh,
        continued_as_new,
        denied,
        device_code_denied,
        end_announced,
        idle_then_kept_alive,
        interim_exchanged,
        keys_fetched,
        late_answers_one_after_another,
        looked_elsewhere,
        metadata_read_again,
        minted_after_an_outage,
        nobody_consented,
        onboarded_in_stages,
        onboarding_rolled_back,
        outage_then_refused_then_reconnected,
        reconciled,
        reported_when_over,
        reported_while_an_answer_is_lost,
        request_pushed,
        revoked_elsewhere_then_reconnected,
        rotated_and_repaired,
        tokens_read_beside_a_grant,
        told_no_and_told_again,
        told_to_a_receiver_that_was_down,
        whole_life,
    )
}


async def record(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        async with running_temporal(Path(folder)) as server:
            client = await Client.connect(
                server.address, data_converter=pydantic_data_converter, identity="worker"
            )
            await prepare_namespace(client, timedelta(days=365))
            for name in names or STORIES:
                file = HISTORIES / f"{name}.json"
                if file.exists():
                    print(f"{name}: kept")
                    continue
                life = await STORIES[name](client)
                file.write_text((await life.handle.fetch_history()).to_json() + "\n")
                print(f"{name}: recorded")


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
