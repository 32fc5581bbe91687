"""Permit decisions: may this app do that, and up to which scopes. Pure.

Owns the decision, its reason and its explanation. Doesn't own authentication (api), where permits are kept
(store) or what a refusal looks like on the wire (core.errors).
"""

from evergrant_server.policy.decision import (
    WILDCARD,
    DecisionReason,
    PermitDecision,
    PermitField,
    PermitQuestion,
    Target,
    decide,
    may_see,
    scopes_above,
)
from evergrant_server.policy.exchange import may_exchange, source_scopes
from evergrant_server.policy.explanation import PermitExplanation, PermitMismatch, explain
from evergrant_server.policy.proxied import NO_TOOL, ProxiedRequest

__all__ = [
    "NO_TOOL",
    "WILDCARD",
    "DecisionReason",
    "PermitDecision",
    "PermitExplanation",
    "PermitField",
    "PermitMismatch",
    "PermitQuestion",
    "ProxiedRequest",
    "Target",
    "decide",
    "explain",
    "may_exchange",
    "may_see",
    "scopes_above",
    "source_scopes",
]
