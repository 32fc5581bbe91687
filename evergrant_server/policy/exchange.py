"""Exchanges of another connection's token, which are judged as a lease of that connection would be."""

from collections.abc import Sequence
from datetime import datetime

from evergrant_server.core.access import Action, Permit
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant
from evergrant_server.policy.decision import PermitDecision, decide
from evergrant_server.policy.question import PermitQuestion, Target
from evergrant_server.policy.scopes import Aliases


def source_scopes(source: Connection, grant: Grant | None, offline: str | None) -> tuple[str, ...]:
    """All that its token can do. `offline`, the scope for a refresh token, permits nothing by itself."""
    scopes = source.requested_scopes if grant is None else grant.scopes
    return tuple(scope for scope in scopes if scope != offline)


def may_exchange(
    permits: Sequence[Permit],
    source: Connection,
    scopes: tuple[str, ...],
    at: datetime,
    aliases: Aliases = (),
) -> PermitDecision:
    """Judge an app's permits as a lease of the source with these scopes would.

    A worker exchanges, later too, so there is no caller's address: no permit with `sources` allows it. Nor
    does one with `exact_scopes`, because the exchange requests no scopes of the source.
    """
    question = PermitQuestion(
        Target.of(source), Action.TOKEN, at, scopes=scopes, excess=scopes, aliases=aliases
    )
    return decide(permits, question)
