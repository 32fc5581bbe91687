"""What a worker does about an MCP server, over the API's store and without Temporal."""

from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.integrations.discovery import DiscoveryActivities
from activities.integrations.metadata import MetadataRereads, PublishedEndpoints
from activities.integrations.registration import ClientRegistrations
from evergrant_server.core.integrations import Integration, IntegrationState
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from evergrant_server.core.messages.maintenance import RereadMetadata, RereadMetadataResult
from evergrant_server.egress import Egress, EgressPolicy
from providers.definition.registry import Registry
from tests.fakes.api import PUBLIC_URL, TENANT, Api
from tests.fakes.providers.scripted_mcp import ScriptedMcp


class McpWorker:
    """A worker's activities about one MCP server, and the integration that an admin has put for it."""

    def __init__(self, api: Api, *servers: ScriptedMcp) -> None:
        self.api = api
        egress = Egress(EgressPolicy(allow=tuple(server.allowance for server in servers)))
        published = PublishedEndpoints(api.worker, Registry.load(), egress)
        self._rereads = MetadataRereads(api.worker, published, api.clock)
        document = f"{PUBLIC_URL}/oauth/client/{{integration}}"
        self._discovery = DiscoveryActivities(
            api.worker, published, api.clock, PUBLIC_URL, document, _Unused()
        )
        self._url = servers[0].mcp

    async def put(self, **more: Any) -> Integration:
        state = IntegrationState.DISCOVERING
        said = {"provider": "mcp", "params": {"url": self._url}, "default_scopes": (), "state": state}
        return await self.api.integration(**said | more)

    async def discovered(self, integration: Integration) -> DiscoveryResult:
        context = RequestContext(by="app:admin")
        asked = DiscoverEndpoints(tenant=TENANT, integration_id=integration.id, context=context)
        return await ActivityEnvironment().run(self._discovery.discover_endpoints, asked)

    async def reread(self) -> RereadMetadataResult:
        return await ActivityEnvironment().run(self._rereads.reread_metadata, RereadMetadata(older_than_s=-1))

    async def now(self, integration: Integration) -> Integration:
        async with self.api.worker.read() as tx:
            found = await tx.integrations.get(TENANT, integration.id)
        assert found is not None
        return found


class _Unused(ClientRegistrations):
    """For clients that are registered already."""

    def __init__(self) -> None: ...
