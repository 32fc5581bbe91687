"""An admin's calls about who reaches what: the explanation of one access, and the report of all."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from httpx2 import Response

from evergrant.calls.call import (
    Call,
    Page,
    object_parser,
    page_parser,
    path_of,
    require_success,
    without_none,
)

_PAGE = "200"


@dataclass(frozen=True, slots=True)
class OtherPermit:
    """A permit that doesn't fit: the first `field` that fails, and the scopes that it refuses."""

    permit: str
    effect: str
    field: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What stops the app apart from its permits, with the code that its request would get."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class AccessExplanation:
    """`allowed` is what the permits say; a request succeeds when `stopped_by` is empty too.

    `scopes` were judged. `decided_by` allowed or denied it, until `valid_until`; `observed_by` would deny it.
    Lists have at most 200 members, `why_not` the nearest permits first; `omitted` counts further permits.
    `down_scoping`: whether the provider issues narrower tokens (`refresh`, `unsupported` or `unknown`).
    """

    app: str
    connection_id: str
    integration: str
    subject: str
    action: str
    scopes: tuple[str, ...]
    allowed: bool
    reason: str
    decided_by: str | None
    valid_until: datetime | None
    also_allowed_by: tuple[str, ...]
    also_denied_by: tuple[str, ...]
    observed_by: tuple[str, ...]
    why_not: tuple[OtherPermit, ...]
    omitted: int
    stopped_by: tuple[Obstacle, ...]
    down_scoping: str


@dataclass(frozen=True, slots=True)
class PermitAccess:
    """A permit of an app and what it reaches now.

    `authentic` false: a row was changed by other means than Evergrant, and the app's requests are refused.
    `scope_ceiling` None: every scope. `last_used_at` None: it has never allowed anything. `app_last_used_at`
    None: the app has never made a request. An agent has a `sponsor`, and ends at `agent_ends_at`.
    """

    app: str
    app_disabled: bool
    permit: str
    effect: str
    mode: str
    integration: str
    provider: str
    subjects: tuple[str, ...]
    connections: tuple[str, ...] | None
    sources: tuple[str, ...] | None
    actions: tuple[str, ...]
    scope_ceiling: tuple[str, ...] | None
    exact_scopes: bool
    scopes: tuple[str, ...] | None
    expires_at: datetime | None
    purpose: str
    owner: str
    reason: str
    authentic: bool
    live_connections: int
    last_used_at: datetime | None
    app_last_used_at: datetime | None
    call_approval: bool
    sponsor: str | None
    agent_ends_at: datetime | None
    methods: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CoveredConnection:
    """A connection that a permit covers."""

    id: str
    integration: str
    subject: str
    state: str


@dataclass(frozen=True, slots=True)
class ReachedPermit:
    """What a permit lets its app do, in `words`, and the first ten of the connections that it covers.

    `last_used_at` None: it has never allowed anything. `expires_at` None: it doesn't end by itself.
    `stopped_by`: the code with which every request of the app is refused now. An agent has a `sponsor`.
    """

    permit: str
    effect: str
    words: str
    covered: tuple[CoveredConnection, ...]
    live_connections: int
    last_used_at: datetime | None
    expires_at: datetime | None
    call_approval: bool
    sponsor: str | None
    agent_ends_at: datetime | None
    stopped_by: str | None


def explain_access(
    app: str,
    connection_id: str,
    scopes: tuple[str, ...] = (),
    *,
    action: str = "token",
    address: str | None = None,
    method: str | None = None,
    path: str | None = None,
    tool: str | None = None,
) -> Call[AccessExplanation]:
    """Whether an app may use a connection now, by which permit, and why not by the others.

    `address` is the app's, for permits with `sources`; without it, it isn't known. `method` and `path` are
    those of a request to the provider's API, for the action proxy; `tool` is one of an MCP server.
    """
    query = {"app": app, "connection": connection_id, "scopes": " ".join(scopes), "action": action}
    query |= without_none(address=address, method=method, path=path, tool=tool)
    parse = object_parser("explanation", AccessExplanation)
    return Call("GET", "/v1/access/explain", parse, query=query)


def access_report() -> Call[Page[PermitAccess]]:
    """Every permit of the tenant's apps, sorted by app and permit."""
    return Call("GET", "/v1/access", page_parser("access", PermitAccess), query={"limit": _PAGE})


def app_reach(app: str) -> Call[Page[ReachedPermit]]:
    """What one app or agent can reach: its permits in plain words, sorted by name."""
    parse = page_parser("reach", ReachedPermit)
    return Call("GET", path_of("apps", app, "reach"), parse, query={"limit": _PAGE})


def access_report_csv() -> Call[Page[str]]:
    """The same as pieces of one CSV file, whose first line has the names. No cell is a formula."""
    return Call("GET", "/v1/access", _csv_page, query={"format": "csv", "limit": _PAGE})


def _csv_page(response: Response) -> Page[str]:
    """The page and, from its Link header (RFC 8288), the cursor of the next one."""
    require_success(response)
    query = parse_qs(urlsplit(response.links.get("next", {}).get("url") or "").query)
    return Page((response.text,), next(iter(query.get("cursor", ())), None))


@dataclass(frozen=True, slots=True)
class AccessChange:
    """A change of who may do what: `detail` was written, `before` is what the record before it said."""

    at: datetime
    action: str
    object: str
    by: str
    detail: Mapping[str, Any]
    before: Mapping[str, Any] | None


def access_changes(since: datetime | None = None, until: datetime | None = None) -> Call[Page[AccessChange]]:
    """What changed about who may do what, from `since` on and before `until`, oldest first."""
    window = {
        "since": None if since is None else since.isoformat(),
        "until": None if until is None else until.isoformat(),
    }
    query = {"limit": _PAGE, **without_none(**window)}
    return Call("GET", "/v1/access/changes", page_parser("change", AccessChange), query=query)


@dataclass(frozen=True, slots=True)
class LostAccess:
    """A connection that the app has leased and couldn't any more: why not, and by which permit."""

    connection_id: str
    integration: str
    subject: str
    leased_at: datetime
    reason: str
    permit: str | None


@dataclass(frozen=True, slots=True)
class Simulation:
    """`judged` connections were leased since then (`complete`: all); `would_lose`: 200 of the `lost`."""

    app: str
    since: datetime
    judged: int
    complete: bool
    lost: int
    would_lose: tuple[LostAccess, ...]


def simulate_access(
    app: str, permits: Mapping[str, Mapping[str, Any] | None], *, since: datetime | None = None
) -> Call[Simulation]:
    """Who would lose access if these permits of the app became so; None removes one."""
    changed = {name: None if permit is None else dict(permit) for name, permit in permits.items()}
    body: dict[str, object] = {"app": app, "permits": changed}
    if since is not None:
        body["since"] = since.isoformat()
    return Call("POST", "/v1/access/simulate", object_parser("simulation", Simulation), body=body)
