"""Judges a request under a delegation: each link of its chain has to allow it, from the person on.

What an app allows by its permits is the intersection with what those above it may do: no link reaches what
the one before doesn't.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from evergrant_server.core.access import Permit
from evergrant_server.core.agents.delegations import Reach
from evergrant_server.policy.decision import PermitDecision, decide, may_see
from evergrant_server.policy.question import DecisionReason, PermitQuestion, Target


class DelegationLink(NamedTuple):
    """One delegation of a chain: whom it is for, how far it reaches, and the permits of its app."""

    subject: str
    reach: Reach
    permits: Sequence[Permit]


def decide_delegated(links: Sequence[DelegationLink], question: PermitQuestion) -> PermitDecision:
    """The decision of the last link's permits, if every link allows the request; else the first refusal."""
    decisions: list[PermitDecision] = []
    for link in links:
        decision = _beyond(link, question) or decide(link.permits, question)
        if not decision.allowed:
            return decision
        decisions.append(decision)
    last, above = (
        decisions[-1],
        tuple(decision.permit for decision in decisions[:-1] if decision.permit is not None),
    )
    observed = tuple(sorted({name for decision in decisions for name in decision.observed}))
    return replace(last, above=above, observed=observed)


def may_see_delegated(
    links: Sequence[DelegationLink], target: Target, at: datetime, address: str | None
) -> bool:
    """Whether each link may learn that the target exists."""
    return all(_covers(link, target) and may_see(link.permits, target, at, address) for link in links)


def _covers(link: DelegationLink, target: Target) -> bool:
    return target.subject == link.subject and link.reach.names(target.integration, target.connection_id)


def _beyond(link: DelegationLink, question: PermitQuestion) -> PermitDecision | None:
    """The refusal of what is outside of a delegation; None for what is inside."""
    if not _covers(link, question.target):
        return PermitDecision(False, DecisionReason.NO_PERMIT)
    if question.action not in link.reach.actions:
        return PermitDecision(False, DecisionReason.ACTION_NOT_PERMITTED)
    beyond = link.reach.scopes_beyond(question.scopes)
    if beyond:
        return PermitDecision(False, DecisionReason.SCOPE_ABOVE_CEILING, None, beyond)
    return None
