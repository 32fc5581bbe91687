"""The routes of the fake: Evergrant's HTTP API over connections in memory."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from evergrant.models import State
from evergrant.testing.connections import FakeConnection, connection_body, live_body, rfc3339
from evergrant.testing.serving import FakeResponse, Request, problem

if TYPE_CHECKING:
    from evergrant.testing.fake import FakeEvergrant

Body = Mapping[str, object]


def route(fake: "FakeEvergrant", request: Request) -> FakeResponse:
    method, query, body = request.method, request.query, request.body
    match (method, request.path.strip("/").split("/")):
        case ("POST", ["v1", "lease"]):
            return _lease(fake, body)
        case ("POST", ["v1", "connections"]):
            return _connect(fake, body)
        case ("GET", ["v1", "connections"]):
            return _page([connection_body(connection) for connection in fake.select(query)])
        case (_, ["v1", "connections", connection_id, *rest]):
            connection = fake.connections.get(connection_id)
            if connection is None:
                return problem(404, "BadRequest", "not_found")
            return _one(connection, method, rest, query, body)
        case ("GET", ["v1", "audit"]):
            return _page(
                [record for connection in fake.connections.values() for record in _audit(connection)]
            )
        case ("GET", ["v1", "providers"]):
            return _page([{"name": "fake", "display_name": "Fake", "categories": [], "default_scopes": []}])
        case ("GET", ["v1", "apps"]):
            return _page([_app(rfc3339(fake.clock()))])
        case ("POST", ["oauth", "token"]):
            token = {"access_token": fake.api_key, "token_type": "Bearer", "expires_in": 600}
            return FakeResponse(200, token)
        case (_, ["connect", link]):
            return _subject(fake, method, link)
        case _:
            return problem(404, "BadRequest", "not_found")


def _lease(fake: "FakeEvergrant", body: Body) -> FakeResponse:
    names = str(body.get("integration")), str(body.get("subject")), str(body.get("label", "default"))
    connection = fake.find(*names)
    if connection is None or connection.state in (State.CONSENT_EXPIRED, State.DENIED):
        connection = fake.pending(names[0], names[1], label=names[2])
    if connection.state is State.ACTIVE:
        min_ttl = body.get("min_ttl")
        connection.refresh_if_due(timedelta(seconds=min_ttl if isinstance(min_ttl, int | float) else 0))
        return _leased(connection, body)
    if connection.state in (State.PENDING_CONSENT, State.NEEDS_REAUTH):
        return problem(
            409,
            "ReconnectNeeded",
            "consent_required",
            connection_id=connection.id,
            connect_url=_link(connection, body),
            expires_at=rfc3339(connection.link_expires_at),
        )
    return problem(
        409, "ReconnectNeeded", connection.reason or "connection_revoked", connection_id=connection.id
    )


def _leased(connection: FakeConnection, body: Body) -> FakeResponse:
    if not connection.valid:
        return problem(503, "ProviderUnavailable", "refresh_pending", retry_after=1)
    scopes = body.get("scopes") or _demanded(body)
    if isinstance(scopes, list) and not set(connection.scopes).issuperset(map(str, scopes)):  # pyright: ignore[reportUnknownArgumentType]  # a JSON list of anything
        missing = [scope for scope in map(str, scopes) if scope not in connection.scopes]  # pyright: ignore[reportUnknownArgumentType]  # as above
        return problem(
            409,
            "ReconnectNeeded",
            "scope_not_granted",
            connection_id=connection.id,
            scopes=" ".join(missing),
            connect_url=_link(connection, body),
            expires_at=rfc3339(connection.link_expires_at),
        )
    connection.leases += 1
    return FakeResponse(
        200,
        {
            "access_token": connection.token,
            "token_type": connection.token_type,
            "expires_at": rfc3339(connection.expires_at),
            "scopes": _scopes_of(connection, body),
            "generation": connection.generation,
            "connection_id": connection.id,
            "grant_over": False,
            "audit": f"fake/{connection.leases - 1}",
        },
    )


def _demanded(body: Body) -> list[str] | None:
    """The scopes of a challenge with `insufficient_scope` in its usual form; the server parses any."""
    header = str(body.get("www_authenticate") or "")
    demanded = re.search(r'[ ,]scope="([^"]+)"', header) if "insufficient_scope" in header else None
    return demanded.group(1).split() if demanded else None


def _scopes_of(connection: FakeConnection, body: Body) -> list[str]:
    """All of them, or with `exact` the requested ones: its provider issues narrower tokens."""
    requested = body.get("scopes")
    if not body.get("exact") or not isinstance(requested, list):
        return list(connection.scopes)
    return [scope for scope in connection.scopes if scope in requested]


def _connect(fake: "FakeEvergrant", body: Body) -> FakeResponse:
    names = str(body.get("integration")), str(body.get("subject")), str(body.get("label", "default"))
    connection = fake.find(*names)
    if connection is None or connection.state.final:
        connection = fake.pending(names[0], names[1], label=names[2])
        _link(connection, body)
        return FakeResponse(201, connection_body(connection, link=True))
    if waits := connection.state in (State.PENDING_CONSENT, State.NEEDS_REAUTH):
        _link(connection, body)
    return FakeResponse(200, connection_body(connection, link=waits))


def _link(connection: FakeConnection, body: Body) -> str:
    return connection.open_consent(_text_or_none(body, "return_to"), _text_or_none(body, "challenge"))


def _text_or_none(body: Body, name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


def _one(
    connection: FakeConnection, method: str, rest: list[str], query: Mapping[str, str], body: Body
) -> FakeResponse:
    match (method, rest):
        case ("GET", []):
            if query.get("live") == "true":
                return FakeResponse(
                    200, connection_body(connection) | {"live": live_body(connection), "differs": ()}
                )
            return FakeResponse(200, connection_body(connection))
        case ("GET", ["audit"]):
            return _page(_audit(connection))
        case ("POST", ["refresh"]):
            return _refresh(connection, body)
        case ("POST", ["proof"]):
            return _proof(connection, body)
        case ("POST", ["confirm"]):
            return _confirm(connection, body)
        case ("POST", ["reauthorize"]):
            _link(connection, body)
            return FakeResponse(200, connection_body(connection, link=True))
        case ("POST", ["revoke"]) | ("DELETE", []):
            if not connection.state.final:
                connection.revoke()
            return FakeResponse(202, connection_body(connection))
        case _:
            return problem(404, "BadRequest", "not_found")


def _confirm(connection: FakeConnection, body: Body) -> FakeResponse:
    refused = connection.confirm(
        str(body.get("code")), str(body.get("subject")), _text_or_none(body, "verifier")
    )
    match refused:
        case "confirmed":
            return FakeResponse(200, connection_body(connection))
        case "not_found":
            return problem(404, "BadRequest", refused)
        case "confirm_expired":
            where = connection.link
            return problem(409, "ReconnectNeeded", refused, connection_id=connection.id, connect_url=where)
        case _:
            return problem(409, "ReconnectNeeded", refused, connection_id=connection.id)


def _refresh(connection: FakeConnection, body: Body) -> FakeResponse:
    if connection.state is not State.ACTIVE:
        return problem(
            409, "ReconnectNeeded", connection.reason or "consent_required", connection_id=connection.id
        )
    seen = body.get("generation", body.get("seen_generation"))
    if not isinstance(seen, int) or seen >= connection.generation:
        if connection.refuses_refresh:
            return problem(503, "ProviderUnavailable", "refresh_pending", retry_after=1)
        connection.rotate()
    return FakeResponse(200, connection_body(connection))


def _proof(connection: FakeConnection, body: Body) -> FakeResponse:
    """A readable stand-in for a signature: generation, method, URL and nonce."""
    if not connection.valid:
        return problem(503, "ProviderUnavailable", "refresh_pending", retry_after=1)
    if connection.token_type != "DPoP":
        return problem(400, "BadRequest", "invalid_request")
    parts = (connection.generation, body.get("htm"), body.get("htu"), body.get("nonce"))
    return FakeResponse(
        200,
        {
            "proof": " ".join(str(part) for part in parts),
            "token_type": "DPoP",
            "htu": str(body.get("htu")),
            "generation": connection.generation,
            "expires_at": rfc3339(connection.expires_at),
            "connection_id": connection.id,
            "grant_over": False,
            "audit": f"fake/{connection.leases - 1}",
        },
    )


def _subject(fake: "FakeEvergrant", method: str, link: str) -> FakeResponse:
    """The connect link: a GET shows the connection; a POST consents, as the subject's browser would, and
    leads to `return_to` with the code to confirm. Without `return_to` the answer has the code.
    """
    for connection in fake.connections.values():
        if connection.link.endswith(f"/{link}"):
            facts: dict[str, object] = {"connection_id": connection.id, "state": connection.state.value}
            if method != "POST":
                return FakeResponse(200, facts)
            came = {"evergrant_code": connection.come_back(), "connection_id": connection.id}
            if connection.return_to is None:
                return FakeResponse(200, facts | came)
            sep = "&" if "?" in connection.return_to else "?"
            return FakeResponse(303, headers={"location": f"{connection.return_to}{sep}{urlencode(came)}"})
    return problem(404, "BadRequest", "not_found")


def _audit(connection: FakeConnection) -> list[dict[str, object]]:
    return [
        {
            "seq": number,
            "shard": "main",
            "at": rfc3339(at),
            "action": action,
            "object": connection.id,
            "by": "fake",
            "trace_id": "",
            "detail": {},
            "workflow_id": None,
            "workflow_run_id": None,
            "workflow_event_id": None,
            "hash": "",
        }
        for number, (at, action) in enumerate(connection.events, 1)
    ]


def _app(created_at: str | None) -> dict[str, object]:
    facts: dict[str, object] = {"id": "app_fake", "name": "fake", "disabled": False, "return_to": []}
    return facts | {"lease_limit": None, "purpose": "", "created_at": created_at, "revision": 1}


def _page(items: list[dict[str, object]]) -> FakeResponse:
    return FakeResponse(200, {"items": items, "next_cursor": None})
