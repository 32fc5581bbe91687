"""A grant without an expiry that ends by silence: its workflow uses it in time, run after run, unasked."""

from datetime import timedelta

import pytest
from temporalio.client import Client

from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import a_grant, living

REFRESHES = 12


class Silent(ScriptedActivities):
    """A provider as Salesforce is, in small: no reply has an expiry, and an unused token soon ends."""

    def _result(self, order: object) -> GrantResult:
        self.generation += 1
        return a_grant(self.generation, None, refresh_token_idle_s=0.8)


@pytest.mark.parametrize("policy", ["adaptive", "on_demand"])
async def test_an_idle_grant_without_an_expiry_is_used_in_time_across_runs(
    client: Client, monkeypatch: pytest.MonkeyPatch, policy: str
):
    quick = RULES[NEWEST_RULES].__replace__(longest_history=60, shortest_interval=timedelta(seconds=0.1))
    monkeypatch.setitem(RULES, NEWEST_RULES, quick)
    async with living(client, Silent(), policy=policy) as life:
        described = await life.consent()
        assert (described.next_step, described.expires_at) == ("keep the refresh token alive", None)
        life.handle = client.get_workflow_handle(life.handle.id)
        await life.until_called(jobs.REFRESH_GRANT.name, REFRESHES)
        assert (await life.until(lambda now: now.generation > REFRESHES)).reason is None
        assert life.scripted.count(jobs.EXPORT_RUN_HISTORY.name) >= 1, "it continued as new"
