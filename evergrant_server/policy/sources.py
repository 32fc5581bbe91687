"""Whose token may be exchanged for a connection's own (RFC 8693): one that the app may lease as it is."""

from collections.abc import Sequence

from evergrant_server.core.access import Action, Permit
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant
from evergrant_server.policy.permits import PermitDecision, decide


def source_scopes(source: Connection, grant: Grant | None, offline: str | None) -> tuple[str, ...]:
    """All that its token can do. `offline`, the scope for a refresh token, permits nothing by itself."""
    scopes = source.requested_scopes if grant is None else grant.scopes
    return tuple(scope for scope in scopes if scope != offline)


def may_exchange(permits: Sequence[Permit], source: Connection, scopes: Sequence[str]) -> PermitDecision:
    """Judge an app's permits as a lease of the source with these scopes would."""
    return decide(
        permits,
        integration=source.integration,
        subject=source.subject,
        action=Action.TOKEN,
        scopes=scopes,
    )
