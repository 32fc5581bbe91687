"""Lives worth keeping: each is run once, and its history kept for replay.

`python -m tests.workflows.stories [NAME …]` records them into `histories/`; an existing file is never
overwritten, since a history that was once real must replay for ever. A change of the
workflow adds a story, or a second recording under a new name.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from evergrant_server.temporal_link.connect import prepare_namespace
from tests.fakes.temporal import running_temporal
from tests.workflows.stories.account_choice import accounts_looked_up_and_chosen
from tests.workflows.stories.clock_skew import reported_when_over
from tests.workflows.stories.connections import (
    approved_on_another_device,
    asked_by_a_pipeline_while_revoking,
    cancelled_in_the_middle_of_a_refresh,
    continued_as_new,
    denied,
    device_code_denied,
    end_announced,
    idle_then_kept_alive,
    minted_after_an_outage,
    nobody_consented,
    outage_then_refused_then_reconnected,
    revoked_elsewhere_then_reconnected,
    rotated_and_repaired,
    told_no_and_told_again,
    whole_life,
)
from tests.workflows.stories.late_tokens import (
    answer_came_late,
    interim_exchanged,
    late_answers_one_after_another,
    tokens_read_beside_a_grant,
)
from tests.workflows.stories.maintenance import (
    Lived,
    keys_fetched,
    looked_elsewhere,
    metadata_read_again,
    onboarded_in_stages,
    onboarding_rolled_back,
    reconciled,
    told_to_a_receiver_that_was_down,
)
from tests.workflows.stories.par import request_pushed
from tests.workflows.stories.token_requests import asked_by_many_at_once, reported_while_an_answer_is_lost

HISTORIES = Path(__file__).parents[1] / "histories"


Story = Callable[[Client], Awaitable[Lived]]


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
