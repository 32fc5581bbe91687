"""An admin's calls: OAuth clients at providers, and a tenant's own provider definitions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from evergrant.calls.call import (
    Call,
    Page,
    object_parser,
    page_parser,
    path_of,
    post,
    require_success,
    seconds_or_none,
    without_none,
)


@dataclass(frozen=True, slots=True)
class Integration:
    """An OAuth client at a provider; register `redirect_uri` there. The server never returns its secret.

    `members` holds all members of the server's answer, those of newer servers too.
    """

    id: str
    name: str
    provider: str
    client_id: str
    state: str
    problem: str | None
    redirect_uri: str
    previous_secret_until: datetime | None
    secret_refused_at: datetime | None
    members: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one automatic check of a definition; `level` is `ok`, `warning` or `problem`."""

    check: str
    level: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProviderVersion:
    """A version of a provider definition that this tenant proposed.

    It serves `share` of the connections. `succeeded` and `failed` count the refreshes in its stage: those
    that succeeded, and those that failed where the version before would have succeeded.
    """

    name: str
    version: int
    state: str
    share: float
    findings: tuple[Finding, ...]
    succeeded: int
    failed: int
    proposed_by: str
    decided_by: str | None
    reason: str | None


_INTEGRATION = object_parser("integration", Integration, "members")
_VERSION = object_parser("provider version", ProviderVersion)


def integrations() -> Call[Page[Integration]]:
    """The integrations that this app administers."""
    return Call("GET", "/v1/integrations", page_parser("integration", Integration, "members"))


def integration(name: str) -> Call[Integration]:
    return Call("GET", path_of("integrations", name), _INTEGRATION)


def put_integration(name: str, **members: object) -> Call[Integration]:
    """Create or change an integration; `members` as the HTTP reference names them, `client_secret` too."""
    return Call("PUT", path_of("integrations", name), _INTEGRATION, body=members)


def delete_integration(name: str) -> Call[None]:
    """Delete an integration with its secret. Refused while it has live connections."""
    return Call("DELETE", path_of("integrations", name), require_success)


def rotate_client_secret(
    name: str, client_secret: str, *, overlap: timedelta | None = None
) -> Call[Integration]:
    """Put a new secret first; the previous one is tried too for `overlap` (None: a day)."""
    return _rotate(name, without_none(client_secret=client_secret, overlap_s=seconds_or_none(overlap)))


def roll_client_secret_back(name: str) -> Call[Integration]:
    """Make the secret from before the rotation the only one again."""
    return _rotate(name, {"roll_back": True})


def propose_provider(
    definition: Mapping[str, object], *, rollout: Mapping[str, object] | None = None
) -> Call[ProviderVersion]:
    """Propose a definition, in the format of the catalogue's files; a worker checks it."""
    return post(
        "/v1/providers",
        _VERSION,
        without_none(definition=definition, rollout=rollout or None),
    )


def provider_versions(name: str) -> Call[Page[ProviderVersion]]:
    """The versions that this tenant proposed, the newest first."""
    return Call(
        "GET",
        path_of("providers", name, "versions"),
        page_parser("provider version", ProviderVersion),
    )


def approve_provider(
    name: str, version: int, *, reason: str | None = None, accept_hosts: bool = False
) -> Call[ProviderVersion]:
    """`accept_hosts`: you have read the finding that secrets would go to new hosts."""
    return _decide(name, "approve", without_none(version=version, accept_hosts=accept_hosts, reason=reason))


def reject_provider(name: str, version: int, reason: str) -> Call[ProviderVersion]:
    return _decide(name, "reject", {"version": version, "reason": reason})


def roll_provider_back(name: str, version: int, reason: str) -> Call[ProviderVersion]:
    """Put the version before a staged one back into service."""
    return _decide(name, "roll-back", {"version": version, "reason": reason})


def _rotate(name: str, body: Mapping[str, object]) -> Call[Integration]:
    return post(path_of("integrations", name, "rotate-secret"), _INTEGRATION, body)


def _decide(name: str, decision: str, body: Mapping[str, object]) -> Call[ProviderVersion]:
    """Needs no Idempotency-Key: the server accepts the first decision only."""
    return Call("POST", path_of("providers", name, decision), _VERSION, body=body)
