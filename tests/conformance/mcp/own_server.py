"""The judge of MCP servers, about Evergrant's own: the scenarios that call no fixture of the judge's."""

import asyncio
import tempfile
from functools import partial
from pathlib import Path

from evergrant_server.core.access import Action
from tests.conformance.mcp.comparison import VERDICT, add_credential
from tests.conformance.mcp.verdicts import run_judge
from tests.fakes.api import running_api
from tests.fakes.platform.gateway import running_gateway, upstream_api

FITTING = {
    "2026-07-28": (
        *("tools-list", "server-sse-multiple-streams", "dns-rebinding-protection"),
        *("http-header-validation", "sep-2164-resource-not-found"),
        *("input-required-result-missing-input-response", "input-required-result-unsupported-methods"),
        *("input-required-result-ignore-extra-params", "input-required-result-validate-input"),
    ),
    "2025-11-25": (
        *("server-initialize", "server-session-lifecycle", "ping", "tools-list"),
        *("server-sse-multiple-streams", "dns-rebinding-protection"),
    ),
}


async def own_server_judged(revision: str) -> bool:
    """Print the verdicts about `/mcp` of one revision; returns whether all that fit are good."""
    with tempfile.TemporaryDirectory(prefix="evergrant-conformance-") as data:
        async with running_api(Path(data)) as api, upstream_api() as upstream:
            shim = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            port = shim.sockets[0].getsockname()[1]
            shim.close()
            api.parts.settings.gateway_public_url = f"http://127.0.0.1:{port}"
            key = await api.app_with("judge", Action.PROXY)
            async with running_gateway(api, upstream) as gateway:
                adding = partial(add_credential, gateway.port, key.encode())
                async with await asyncio.start_server(adding, "127.0.0.1", port):
                    url = f"http://127.0.0.1:{port}/mcp"
                    said = await run_judge("server", "--url", url, "--requirements", revision)
    verdicts = {name: (passed, failed) for name, passed, failed, _ in VERDICT.findall(said)}
    print(f"\n{revision}, server mode: Evergrant's own MCP server")
    good = 0
    for name in FITTING[revision]:
        passed, failed = verdicts.get(name, ("0", "0"))
        is_good = passed != "0" and failed == "0"
        good += is_good
        print(f"  {'✓' if is_good else '✗'} {name}: {passed} passed, {failed} failed")
    print(f"{good} of {len(FITTING[revision])} scenarios without fixtures pass", flush=True)
    return good == len(FITTING[revision])
