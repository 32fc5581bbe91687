"""A workflow of the tests of `mcp_client`."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from mcp.types import TextContent
    from temporalio.mcp import TemporalMCPClient


@workflow.defn
class UsesTool:
    """Calls one tool of the server `crm` for a connection."""

    @workflow.run
    async def run(self, connection_id: str | None, tool: str) -> str:
        client = TemporalMCPClient("crm", factory_argument=connection_id)
        (content,) = (await client.call_tool(tool, {})).content
        assert isinstance(content, TextContent)
        return content.text
