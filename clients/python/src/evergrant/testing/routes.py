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
            return _page([connection_body(found) for found in fake.select(query)])
        case (_, ["v1", "connections", connection_id, *rest]):
            found = fake.connections.get(connection_id)
            if found is None:
                return problem(404, "BadRequest", "not_found")
            return _one(found, method, rest, query, body)
        case ("GET", ["v1", "audit"]):
            return _page([record for found in fake.connections.values() for record in _audit(found)])
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
    found = fake.find(*names)
    if found is None or found.state in (State.CONSENT_EXPIRED, State.DENIED):
        found = fake.pending(names[0], names[1], label=names[2])
    if found.state is State.ACTIVE:
        min_ttl = body.get("min_ttl")
        found.refresh_if_due(timedelta(seconds=min_ttl if isinstance(min_ttl, int | float) else 0))
        return _leased(found, body)
    if found.state in (State.PENDING_CONSENT, State.NEEDS_REAUTH):
        return problem(
            409,
            "ReconnectNeeded",
            "consent_required",
            connection_id=found.id,
            connect_url=_link(found, body),
            expires_at=rfc3339(found.link_expires_at),
        )
    return problem(409, "ReconnectNeeded", found.reason or "connection_revoked", connection_id=found.id)


def _leased(found: FakeConnection, body: Body) -> FakeResponse:
    if not found.valid:
        return problem(503, "ProviderUnavailable", "refresh_pending", retry_after=1)
    scopes = body.get("scopes") or _demanded(body)
    if isinstance(scopes, list) and not set(found.scopes).issuperset(map(str, scopes)):  # pyright: ignore[reportUnknownArgumentType]  # a JSON list of anything
        missing = [scope for scope in map(str, scopes) if scope not in found.scopes]  # pyright: ignore[reportUnknownArgumentType]  # as above
        return problem(
            409,
            "ReconnectNeeded",
            "scope_not_granted",
            connection_id=found.id,
            scopes=" ".join(missing),
            connect_url=_link(found, body),
            expires_at=rfc3339(found.link_expires_at),
        )
    found.leases += 1
    return FakeResponse(
        200,
        {
            "access_token": found.token,
            "token_type": found.token_type,
            "expires_at": rfc3339(found.expires_at),
            "scopes": _scopes_of(found, body),
            "generation": found.generation,
            "connection_id": found.id,
        },
    )


def _demanded(body: Body) -> list[str] | None:
    """The scopes of a challenge with `insufficient_scope` in its usual form; the server parses any."""
    header = str(body.get("www_authenticate") or "")
    demanded = re.search(r'[ ,]scope="([^"]+)"', header) if "insufficient_scope" in header else None
    return demanded.group(1).split() if demanded else None


def _scopes_of(found: FakeConnection, body: Body) -> list[str]:
    """All of them, or with `exact` the requested ones: its provider issues narrower tokens."""
    requested = body.get("scopes")
    if not body.get("exact") or not isinstance(requested, list):
        return list(found.scopes)
    return [scope for scope in found.scopes if scope in requested]


def _connect(fake: "FakeEvergrant", body: Body) -> FakeResponse:
    names = str(body.get("integration")), str(body.get("subject")), str(body.get("label", "default"))
    found = fake.find(*names)
    if found is None or found.state.final:
        found = fake.pending(names[0], names[1], label=names[2])
        _link(found, body)
        return FakeResponse(201, connection_body(found, link=True))
    if waits := found.state in (State.PENDING_CONSENT, State.NEEDS_REAUTH):
        _link(found, body)
    return FakeResponse(200, connection_body(found, link=waits))


def _link(found: FakeConnection, body: Body) -> str:
    return found.open_consent(_text_or_none(body, "return_to"), _text_or_none(body, "challenge"))


def _text_or_none(body: Body, name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


def _one(
    found: FakeConnection, method: str, rest: list[str], query: Mapping[str, str], body: Body
) -> FakeResponse:
    match (method, rest):
        case ("GET", []):
            if query.get("live") == "true":
                return FakeResponse(200, connection_body(found) | {"live": live_body(found), "differs": ()})
            return FakeResponse(200, connection_body(found))
        case ("GET", ["audit"]):
            return _page(_audit(found))
        case ("POST", ["refresh"]):
            return _refresh(found, body)
        case ("POST", ["proof"]):
            return _proof(found, body)
        case ("POST", ["confirm"]):
            return _confirm(found, body)
        case ("POST", ["reauthorize"]):
            _link(found, body)
            return FakeResponse(200, connection_body(found, link=True))
        case ("POST", ["revoke"]) | ("DELETE", []):
            if not found.state.final:
                found.revoke()
            return FakeResponse(202, connection_body(found))
        case _:
            return problem(404, "BadRequest", "not_found")


def _confirm(found: FakeConnection, body: Body) -> FakeResponse:
    refused = found.confirm(str(body.get("code")), str(body.get("subject")), _text_or_none(body, "verifier"))
    match refused:
        case "confirmed":
            return FakeResponse(200, connection_body(found))
        case "not_found":
            return problem(404, "BadRequest", refused)
        case "confirm_expired":
            where = found.link
            return problem(409, "ReconnectNeeded", refused, connection_id=found.id, connect_url=where)
        case _:
            return problem(409, "ReconnectNeeded", refused, connection_id=found.id)


def _refresh(found: FakeConnection, body: Body) -> FakeResponse:
    if found.state is not State.ACTIVE:
        return problem(409, "ReconnectNeeded", found.reason or "consent_required", connection_id=found.id)
    seen = body.get("generation", body.get("seen_generation"))
    if not isinstance(seen, int) or seen >= found.generation:
        if found.refuses_refresh:
            return problem(503, "ProviderUnavailable", "refresh_pending", retry_after=1)
        found.rotate()
    return FakeResponse(200, connection_body(found))


def _proof(found: FakeConnection, body: Body) -> FakeResponse:
    """A readable stand-in for a signature: generation, method, URL and nonce."""
    if not found.valid:
        return problem(503, "ProviderUnavailable", "refresh_pending", retry_after=1)
    if found.token_type != "DPoP":
        return problem(400, "BadRequest", "invalid_request")
    parts = (found.generation, body.get("htm"), body.get("htu"), body.get("nonce"))
    return FakeResponse(
        200,
        {
            "proof": " ".join(str(part) for part in parts),
            "token_type": "DPoP",
            "htu": str(body.get("htu")),
            "generation": found.generation,
            "expires_at": rfc3339(found.expires_at),
            "connection_id": found.id,
        },
    )


def _subject(fake: "FakeEvergrant", method: str, link: str) -> FakeResponse:
    """The connect link: a GET shows the connection; a POST consents, as the subject's browser would, and
    leads to `return_to` with the code to confirm. Without `return_to` the answer has the code.
    """
    for found in fake.connections.values():
        if found.link.endswith(f"/{link}"):
            facts: dict[str, object] = {"connection_id": found.id, "state": found.state.value}
            if method != "POST":
                return FakeResponse(200, facts)
            came = {"evergrant_code": found.come_back(), "connection_id": found.id}
            if found.return_to is None:
                return FakeResponse(200, facts | came)
            sep = "&" if "?" in found.return_to else "?"
            return FakeResponse(303, headers={"location": f"{found.return_to}{sep}{urlencode(came)}"})
    return problem(404, "BadRequest", "not_found")


def _audit(found: FakeConnection) -> list[dict[str, object]]:
    return [
        {
            "seq": number,
            "shard": "main",
            "at": rfc3339(at),
            "action": action,
            "object": found.id,
            "by": "fake",
            "trace_id": "",
            "detail": {},
            "workflow_id": None,
            "workflow_run_id": None,
            "workflow_event_id": None,
            "hash": "",
        }
        for number, (at, action) in enumerate(found.events, 1)
    ]


def _app(created_at: str | None) -> dict[str, object]:
    facts: dict[str, object] = {"id": "app_fake", "name": "fake", "disabled": False, "return_to": []}
    return facts | {"lease_limit": None, "purpose": "", "created_at": created_at, "revision": 1}


def _page(items: list[dict[str, object]]) -> FakeResponse:
    return FakeResponse(200, {"items": items, "next_cursor": None})
