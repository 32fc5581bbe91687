"""The gateway with the measurements' API in its catalogue: `python -m bench.gateway_process URL`."""

import sys
from contextlib import AsyncExitStack

from evergrant_server.cli.serve_gateway import open_gateway
from evergrant_server.egress import EgressPolicy, StreamingTransport
from evergrant_server.gateway.app import GatewayApp
from evergrant_server.gateway.server import Lifespan, make_server
from evergrant_server.settings import load_settings
from providers.definition.registry import Registry


def main(url: str) -> None:
    settings = load_settings()

    async def start(opened: AsyncExitStack) -> GatewayApp:
        app = await open_gateway(settings, opened)
        at = {"api_base_url": url, "api_base_url_param": None, "protected_resource": f"{url}/mcp"}
        generic = app.parts.api.registry.get("generic").model_copy(update=at)
        app.parts.api.registry = Registry({"generic": generic})
        policy = EgressPolicy(allow=(url.removeprefix("http://"),))
        app.parts.transport = StreamingTransport(policy, silence_s=60)
        return app

    listener = {"host": settings.gateway_host, "port": settings.gateway_port}
    make_server(Lifespan(start), drain_s=1, **listener).run()


if __name__ == "__main__":
    main(sys.argv[1])
