"""Every call of the API as data: what to send, and who reads the answer. Pure.

The two clients differ in how they wait, not in what they say: both only carry these out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Generic, TypeVar
from urllib.parse import quote
from uuid import uuid4

from evergrant.models import App, AuditRecord, Connection, Proof, Provider, State
from evergrant.replies import (
    LeaseResponse,
    Page,
    Response,
    parse_apps,
    parse_audit,
    parse_connection,
    parse_connections,
    parse_lease_response,
    parse_proof,
    parse_providers,
)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One request and its judge. Every call may be sent again: it reads, or it has a key."""

    method: str
    path: str
    parse: Callable[[Response], Answer]
    query: Mapping[str, str] | None = None
    body: Mapping[str, object] | None = None
    idempotency_key: str | None = None


def lease(
    integration: str,
    subject: str,
    *,
    label: str = "default",
    min_ttl: timedelta | None = None,
    scopes: tuple[str, ...] | None = None,
) -> Call[LeaseResponse]:
    body = _given(
        integration=integration, subject=subject, label=label, min_ttl=_seconds(min_ttl), scopes=_list(scopes)
    )
    return Call("POST", "/v1/lease", parse_lease_response, body=body)


def proof(connection_id: str, method: str, url: str, *, nonce: str | None = None) -> Call[Proof]:
    body = _given(htm=method.upper(), htu=url.partition("#")[0], nonce=nonce)
    return Call("POST", f"{_of(connection_id)}/proof", parse_proof, body=body)


def connect(
    integration: str,
    subject: str,
    *,
    label: str = "default",
    scopes: tuple[str, ...] | None = None,
    return_to: str | None = None,
    flow: str | None = None,
    resources: tuple[str, ...] = (),
    audience: str | None = None,
    choice: str | None = None,
    chain_scopes: Mapping[str, tuple[str, ...]] | None = None,
) -> Call[Connection]:
    body = _given(
        integration=integration,
        subject=subject,
        label=label,
        scopes=_list(scopes),
        return_to=return_to,
        flow=flow,
        resources=list(resources) or None,
        audience=audience,
        choice=choice,
        chain_scopes=None if chain_scopes is None else {it: list(its) for it, its in chain_scopes.items()},
    )
    return _command("/v1/connections", body)


def connection(connection_id: str, *, live: bool = False) -> Call[Connection]:
    query = {"live": "true"} if live else None
    return Call("GET", _of(connection_id), parse_connection, query=query)


def connections(
    *,
    integration: str | None = None,
    provider: str | None = None,
    subject: str | None = None,
    state: State | None = None,
    expiring_before: datetime | None = None,
    limit: int | None = None,
) -> Call[Page[Connection]]:
    query = {
        "integration": integration,
        "provider": provider,
        "subject": subject,
        "state": state.value if state else None,
        "expiring_before": _rfc3339(expiring_before) if expiring_before else None,
        "limit": str(limit) if limit is not None else None,
    }
    given = {name: value for name, value in query.items() if value is not None}
    return Call("GET", "/v1/connections", parse_connections, query=given)


def report_refused(connection_id: str, generation: int) -> Call[Connection]:
    body = {"generation": generation, "reason": "unauthorized"}
    return _command(f"{_of(connection_id)}/refresh", body)


def refresh(connection_id: str, *, seen_generation: int | None = None) -> Call[Connection]:
    return _command(f"{_of(connection_id)}/refresh", _given(seen_generation=seen_generation))


def reauthorize(
    connection_id: str, *, scopes: tuple[str, ...] | None = None, return_to: str | None = None
) -> Call[Connection]:
    body = _given(scopes=_list(scopes), return_to=return_to)
    return _command(f"{_of(connection_id)}/reauthorize", body)


def choose(connection_id: str, choice: str) -> Call[Connection]:
    return _command(f"{_of(connection_id)}/choose", {"choice": choice})


def revoke(connection_id: str, reason: str) -> Call[Connection]:
    return _command(f"{_of(connection_id)}/revoke", {"reason": reason})


def audit(connection_id: str | None = None) -> Call[Page[AuditRecord]]:
    path = "/v1/audit" if connection_id is None else f"{_of(connection_id)}/audit"
    return Call("GET", path, parse_audit)


def providers() -> Call[Page[Provider]]:
    return Call("GET", "/v1/providers", parse_providers)


def apps() -> Call[Page[App]]:
    return Call("GET", "/v1/apps", parse_apps)


def next_page(call: Call[Page[Answer]], page: Page[Answer]) -> Call[Page[Answer]] | None:
    """The call for the page behind `page`, None when it was the last."""
    if page.next_cursor is None:
        return None
    return replace(call, query={**(call.query or {}), "cursor": page.next_cursor})


def _command(path: str, body: Mapping[str, object]) -> Call[Connection]:
    # The key is made once per call, not per attempt: that is what makes a retry safe.
    return Call("POST", path, parse_connection, body=body, idempotency_key=str(uuid4()))


def _of(connection_id: str) -> str:
    return f"/v1/connections/{quote(connection_id, safe='')}"


def _given(**members: object) -> Mapping[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def _list(scopes: tuple[str, ...] | None) -> list[str] | None:
    return None if scopes is None else list(scopes)


def _seconds(time: timedelta | None) -> float | None:
    return None if time is None else time.total_seconds()


def _rfc3339(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("expiring_before needs a time zone")
    return at.isoformat()
