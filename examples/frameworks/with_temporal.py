"""The OpenAI Agents SDK in a Temporal workflow: the history names the connection, and has no token."""

from datetime import timedelta
from urllib.parse import urlsplit

from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from agents import Agent, ModelProvider, Runner
    from agents.mcp import MCPServerStreamableHttp
    from evergrant.temporal import EvergrantPlugin, connection_auth, ensure
    from temporalio.openai_agents import OpenAIAgentsPlugin
    from temporalio.openai_agents.workflow import temporal_mcp_server


@workflow.defn
class Greets:
    @workflow.run
    async def run(self, question: str) -> str:
        ready = await ensure("tools", "alice", timeout=timedelta(days=3))
        tools = temporal_mcp_server("tools", factory_argument=ready.connection_id)
        agent = Agent("greeter", mcp_servers=[tools])
        return (await Runner.run(agent, question)).final_output


async def worker(address: str, url: str, models: ModelProvider) -> Worker:
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))

    def tools(connection: object) -> MCPServerStreamableHttp:
        auth = connection_auth(connection, origins=origin)
        return MCPServerStreamableHttp({"url": url, "auth": auth, "timeout": 60})

    agents = OpenAIAgentsPlugin(model_provider=models, mcp_servers={"tools": tools})
    client = await Client.connect(address, plugins=[agents, EvergrantPlugin()])
    return Worker(client, task_queue="greetings", workflows=[Greets])
