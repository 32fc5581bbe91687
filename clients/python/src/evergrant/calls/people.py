"""Calls about people who administer: where they log in, who is logged in, and one's own session."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evergrant.calls.call import (
    Call,
    Page,
    list_or_none,
    object_parser,
    page_parser,
    path_of,
    require_success,
)

_LOGIN, _OWN = "/v1/admin-login", "/v1/sessions/current"


@dataclass(frozen=True, slots=True)
class AdminLogin:
    """Where people log in, and which of the issuer's groups have which role."""

    integration: str
    issuer: str
    groups_claim: str
    roles: Mapping[str, Any]
    scopes: tuple[str, ...]
    changed_at: datetime
    login_url: str
    redirect_uri: str


@dataclass(frozen=True, slots=True)
class PersonSession:
    """A session of a person. `person` is what audit records name; `live`: it is accepted now."""

    id: str
    kind: str
    person: str
    issuer: str
    sub: str
    name: str | None
    role: str
    reason: str | None
    live: bool
    authenticated_at: datetime | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    ended_at: datetime | None


def admin_login() -> Call[AdminLogin]:
    """Where people log in."""
    return Call("GET", _LOGIN, object_parser("login", AdminLogin))


def put_admin_login(
    integration: str,
    roles: Mapping[str, tuple[str, ...]],
    *,
    groups_claim: str = "groups",
    scopes: tuple[str, ...] = (),
) -> Call[AdminLogin]:
    """Have people log in at the integration's issuer. `roles`: the names of groups for each role.

    A change ends the sessions of all people.
    """
    body = {
        "integration": integration,
        "roles": {role: list_or_none(groups) for role, groups in roles.items()},
        "groups_claim": groups_claim,
        "scopes": list(scopes),
    }
    return Call("PUT", _LOGIN, object_parser("login", AdminLogin), body=body)


def delete_admin_login() -> Call[None]:
    """Let no people log in. Ends the sessions of all people."""
    return Call("DELETE", _LOGIN, require_success)


def sessions() -> Call[Page[PersonSession]]:
    """The sessions of people; ended ones for thirty days."""
    return Call("GET", "/v1/sessions", page_parser("session", PersonSession))


def end_session(session_id: str) -> Call[None]:
    """End a session. Requests with it are refused at once."""
    return Call("DELETE", path_of("sessions", session_id), require_success)


def own_session() -> Call[PersonSession]:
    """The session that the client uses. An app has none: BadRequest with the code `not_found`."""
    return Call("GET", _OWN, object_parser("session", PersonSession))


def end_own_session() -> Call[None]:
    """Log out."""
    return Call("DELETE", _OWN, require_success)
