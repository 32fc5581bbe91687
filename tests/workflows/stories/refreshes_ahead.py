"""Stories of refreshes that no caller waits for: one gives way, one is postponed."""

import asyncio
from datetime import timedelta

from temporalio.client import Client
from temporalio.exceptions import ApplicationError

from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult
from tests.workflows.connection_runs import Handle, a_grant, living

REFRESH = jobs.REFRESH_GRANT.name


def _busy(_: object) -> GrantResult:
    raise ApplicationError("its share of the worker is taken", next_retry_delay=timedelta(hours=1))


async def refresh_ahead_overtaken_by_a_caller(client: Client) -> Handle:
    """It waits for a slot, for an hour if need be; a caller comes, and has a token at once."""
    async with living(client) as life:
        await life.consent()
        life.scripted.answers[REFRESH].append(_busy)
        ahead = asyncio.create_task(life.ensure_fresh(1, ahead=True))
        await life.until_called(REFRESH)
        assert (await life.ensure_fresh(1)).generation == 2
        assert (await ahead).generation == 2
        return life.handle


async def refresh_ahead_postponed_for_a_limit(client: Client) -> Handle:
    """Its provider has nothing left for a second: a lease is told so, and the next try comes by itself."""
    async with living(client, policy="warm") as life:
        await life.consent()
        life.scripted.answers[REFRESH].append(a_grant(postponed_s=1.0))
        answer = await life.ensure_fresh(1, ahead=True)
        assert (answer.declined, answer.retry_after) == (True, 1.0)
        await life.until(lambda d: d.generation == 2)
        return life.handle
