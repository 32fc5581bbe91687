"""`evergrant mcp`: what a client of MCP is configured with."""

from cyclopts import App

from evergrant.cli.output import DEFAULTS, Options
from evergrant.cli.start.settings_file import environment
from evergrant.errors import BadRequest
from evergrant.gateway.clients import gateway_address
from evergrant.models import State

_OVER = (State.REVOKING, State.REVOKED, State.DENIED)

mcp = App(name="mcp", help="MCP servers through the gateway.")


@mcp.command
def url(
    integration: str | None = None,
    subject: str | None = None,
    /,
    *,
    label: str = "default",
    gateway_url: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Print the URL of a subject's MCP server at the gateway, for an MCP client's configuration; without
    names that of Evergrant's own MCP server.

    The client sends `Authorization: Bearer` with the app's API key there.

    Args:
        gateway_url: The gateway's URL; by default EVERGRANT_GATEWAY_URL, or that of evergrant.env.
    """
    gateway = gateway_address(gateway_url, allow_plain_http=True, environ=environment(options.url))
    if integration is None:
        print(f"{gateway}/mcp")
        return
    if subject is None:
        repair = f"Run: evergrant mcp url {integration} SUBJECT"
        raise BadRequest("the subject is missing", code="invalid_request", repair=repair)
    with options.client() as client:
        found = client.connections(integration=integration, subject=subject)
        ids = [it.id for it in found if it.label == label and it.state not in _OVER]
    if not ids:
        why = f"{subject} has no connection of {integration} that this app may see"
        repair = f"Run: evergrant connect {integration} {subject} --open --wait"
        raise BadRequest(why, code="not_found", repair=repair)
    print(f"{gateway}/mcp/{ids[0]}")
