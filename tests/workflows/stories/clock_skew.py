"""Stories of connections whose workers have a clock that is wrong."""

import asyncio
from datetime import UTC, datetime, timedelta

from temporalio.client import Client

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.base import ActivityName, UpdateName
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Life, living

_LIVES = timedelta(seconds=2)


async def reported_when_over(client: Client) -> Life:
    """Tokens that are dated an hour ahead; each is over after two seconds all the same, and reported."""
    scripted = ScriptedActivities()
    async with living(client, scripted, policy="on_demand") as life:
        for generation, name in enumerate((ActivityName.EXCHANGE_CODE, *[ActivityName.REFRESH_GRANT] * 2)):
            ahead = datetime.now(UTC) + timedelta(hours=1)
            news = GrantResult(
                state=LifecycleState.ACTIVE,
                generation=generation + 1,
                obtained_at=ahead,
                expires_at=ahead + _LIVES,
                refreshable=True,
            )
            scripted.answers[name].append(news)
            if not generation:
                described = await life.consent()
            else:
                report = m.EnsureFresh(
                    seen_generation=generation, context=ASKED, refresh_reason=m.RefreshReason.UNAUTHORIZED
                )
                await life.handle.execute_update(
                    UpdateName.ENSURE_FRESH, report, result_type=m.EnsureFreshResult
                )
                described = await life.until(lambda d, seen=generation: d.generation > seen)
            assert described.expires_at is not None
            await asyncio.sleep((described.expires_at - datetime.now(UTC)).total_seconds() + 0.1)
        return life
