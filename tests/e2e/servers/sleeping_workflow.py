"""A workflow that only waits. In a file of its own: Temporal's sandbox imports it without the tests."""

import asyncio

from temporalio import workflow


@workflow.defn
class Naps:
    @workflow.run
    async def run(self, hours: int) -> str:
        await asyncio.sleep(hours * 3600)
        return "rested"
