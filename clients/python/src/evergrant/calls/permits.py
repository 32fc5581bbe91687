"""An admin's calls for permits: what apps may do, and what they may not."""

from dataclasses import dataclass
from datetime import datetime

from evergrant.calls.call import (
    Call,
    Page,
    list_or_none,
    object_parser,
    page_parser,
    path_of,
    require_success,
    without_none,
)


@dataclass(frozen=True, slots=True)
class Permit:
    """A permit of an app. `scope_ceiling`, `connections`, `sources`, `scopes` None: any."""

    id: str
    name: str
    effect: str
    mode: str
    integration: str
    provider: str
    subjects: tuple[str, ...]
    connections: tuple[str, ...] | None
    sources: tuple[str, ...] | None
    scope_ceiling: tuple[str, ...] | None
    exact_scopes: bool
    scopes: tuple[str, ...] | None
    actions: tuple[str, ...]
    expires_at: datetime | None
    purpose: str
    owner: str
    reason: str
    created_at: datetime
    revision: int
    methods: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    call_approval: bool = False
    tools: tuple[str, ...] | None = None


def permits(app: str) -> Call[Page[Permit]]:
    """Every permit of an app, by name."""
    return Call("GET", path_of("apps", app, "permits"), page_parser("permit", Permit))


def permit(app: str, name: str) -> Call[Permit]:
    """One permit of an app."""
    return Call("GET", path_of("apps", app, "permits", name), _parse)


def put_permit(
    app: str,
    name: str,
    *,
    integration: str,
    actions: tuple[str, ...],
    effect: str = "allow",
    mode: str = "enforce",
    provider: str = "*",
    subjects: tuple[str, ...] = ("*",),
    connections: tuple[str, ...] | None = None,
    sources: tuple[str, ...] | None = None,
    scope_ceiling: tuple[str, ...] | None = None,
    exact_scopes: bool = False,
    scopes: tuple[str, ...] | None = None,
    expires_at: datetime | None = None,
    purpose: str = "",
    owner: str = "",
    reason: str = "",
    methods: tuple[str, ...] | None = None,
    paths: tuple[str, ...] | None = None,
    call_approval: bool = False,
    tools: tuple[str, ...] | None = None,
) -> Call[Permit]:
    """Create a permit, or replace all of one.

    An allow has `scope_ceiling` and `exact_scopes`, a deny `scopes`, and `mode` "observe" to refuse nothing
    yet. A subject that ends in * stands for every subject that begins with what is before it. `methods` and
    `paths` are of the action proxy, `tools` of an MCP server's; with `call_approval` a person approves each
    request.
    """
    named = {
        "actions": actions,
        "subjects": subjects,
        "connections": connections,
        "sources": sources,
        "scope_ceiling": scope_ceiling,
        "scopes": scopes,
        "methods": methods,
        "paths": paths,
        "tools": tools,
    }
    body = {
        **without_none(**{name: list_or_none(values) for name, values in named.items()}),
        **without_none(expires_at=None if expires_at is None else expires_at.isoformat()),
        **{"integration": integration, "effect": effect, "mode": mode, "provider": provider},
        **({"call_approval": True} if call_approval else {}),
        **{"exact_scopes": exact_scopes, "purpose": purpose, "owner": owner, "reason": reason},
    }
    return Call("PUT", path_of("apps", app, "permits", name), _parse, body=body)


def delete_permit(app: str, name: str) -> Call[None]:
    """Delete a permit: it counts from the next request on."""
    return Call("DELETE", path_of("apps", app, "permits", name), require_success)


_parse = object_parser("permit", Permit)
