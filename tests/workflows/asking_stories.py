"""Stories of connections that many want something of at once."""

import asyncio
from datetime import UTC, datetime, timedelta

from temporalio.client import Client

from evergrant_server.core import messages as m
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.lives import ASKED, Life, a_consent, living


async def asked_by_many_at_once(client: Client) -> Life:
    """Two pipelines find out that the grant is dead, and hear again; then many want one newer token."""
    scripted = ScriptedActivities(lifetime=timedelta(seconds=1))
    async with living(client, scripted, policy="on_demand") as life:
        await life.consent()
        await asyncio.sleep(1.1)
        scripted.answers[m.ActivityName.REFRESH_GRANT].append(m.GrantNews(failure=Code.GRANT_REJECTED))
        for pipeline in ("one-that-is-gone", "another-that-is-gone"):
            ask = m.RequestToken(app="crm-sync", reply_to=pipeline, asked=ASKED)
            await life.handle.signal(m.SIGNAL_REQUEST_TOKEN, ask)
        await life.until(lambda d: d.reason is Code.GRANT_REJECTED)
        await life.handle.signal(m.SIGNAL_CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.generation == 2)
        newer = m.Rotate(reason="its token is to be exchanged", asked=ASKED, seen_generation=2)
        for _ in range(3):
            await life.handle.signal(m.SIGNAL_ROTATE, newer)
        await life.until(lambda d: d.generation == 3)
        return life


async def reported_while_an_answer_is_lost(client: Client) -> Life:
    """A token that has no end is reported; an answer is lost, and the next try knows of the report."""
    scripted = ScriptedActivities()
    endless = m.GrantNews(state=State.ACTIVE, generation=1, obtained_at=datetime.now(UTC), refreshable=True)
    scripted.answers[m.ActivityName.EXCHANGE_CODE].append(endless)
    lost = m.GrantNews(failure=Code.PROVIDER_UNREACHABLE)
    newer = endless.model_copy(update={"generation": 2})
    scripted.answers[m.ActivityName.REFRESH_GRANT] += [lost, newer]
    async with living(client, scripted, policy="on_demand") as life:
        await life.consent()
        report = m.EnsureFresh(seen_generation=1, asked=ASKED, wish=m.Wish.UNAUTHORIZED)
        await life.handle.execute_update(m.UPDATE_ENSURE_FRESH, report, result_type=m.Freshness)
        await life.until(lambda d: d.generation == 2)
        orders = [order for name, order in scripted.calls if name == m.ActivityName.REFRESH_GRANT]
        assert [order.token_over for order in orders] == [True, True]
        return life
