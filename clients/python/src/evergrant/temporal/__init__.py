"""Evergrant inside Temporal: a plugin for the worker, and functions for workflow code.

Owns how an activity gets its lease (`lease`, `lease_blocking`; `mcp_client` for MCP clients), what
keeps tokens out of Temporal (`EvergrantPlugin`), and how a workflow waits for a token: until a person
has consented (`ensure`), or for an answer of the connection's workflow (`TokenInbox`, `request_token`).
A workflow never receives a token, only the fact that one is ready.

Names are loaded on first use: workflow code imports `TokenInbox` from here inside the sandbox
without loading an HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evergrant.temporal.leases import lease, lease_blocking
    from evergrant.temporal.mcp import connection_auth, mcp_client
    from evergrant.temporal.plugin import EvergrantPlugin
    from evergrant.temporal.workflow import (
        Ensured,
        TokenInbox,
        TokenNotReady,
        TokenReady,
        connection_workflow_id,
        ensure,
        request_token,
    )

__all__ = [
    "Ensured",
    "EvergrantPlugin",
    "TokenInbox",
    "TokenNotReady",
    "TokenReady",
    "connection_auth",
    "connection_workflow_id",
    "ensure",
    "lease",
    "lease_blocking",
    "mcp_client",
    "request_token",
]

_MODULES = {
    "EvergrantPlugin": "plugin",
    "connection_auth": "mcp",
    "lease": "leases",
    "lease_blocking": "leases",
    "mcp_client": "mcp",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'evergrant.temporal' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'workflow')}"), name)
