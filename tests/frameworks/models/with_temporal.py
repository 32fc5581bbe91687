"""The scripted model of the OpenAI Agents SDK in Temporal's plugin, and the search of the history."""

from evergrant import AsyncEvergrant
from temporalio.client import Client
from temporalio.openai_agents.testing import TestModelProvider

from examples.frameworks.with_temporal import Greets, worker
from tests.frameworks.models import with_openai_agents
from tests.frameworks.models.script import QUESTION


async def answer(address: str, url: str) -> str:
    """The workflow's answer, after its history was found to hold the connection's id and no token."""
    models = TestModelProvider(with_openai_agents.Scripted())
    async with await worker(address, url, models), AsyncEvergrant() as evergrant:
        client = await Client.connect(address)
        handle = await client.start_workflow(Greets.run, QUESTION, id="greets", task_queue="greetings")
        said = await handle.result()
        token = await evergrant.token("tools", "alice")
        (connection,) = [it.id async for it in evergrant.connections(integration="tools")]
        history = b"".join(it.SerializeToString() for it in (await handle.fetch_history()).events)
        assert connection.encode() in history
        assert token.encode() not in history
    return said
