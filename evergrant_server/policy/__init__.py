"""Permit decisions: may this app do that, and up to which scopes. Pure.

Owns the decision, its reason and its explanation. Doesn't own authentication (access), where permits are kept
(store) or what a refusal looks like on the wire (core.errors).
"""

from evergrant_server.policy.decision import (
    WILDCARD,
    PermitDecision,
    decide,
    may_exchange,
    may_see,
    scopes_above,
    source_scopes,
)
from evergrant_server.policy.delegated import DelegationLink, decide_delegated, may_see_delegated
from evergrant_server.policy.explanation import PermitExplanation, PermitMismatch, explain
from evergrant_server.policy.overrides import method_overrides, query_names
from evergrant_server.policy.proxied import NO_TOOL, ProxiedRequest
from evergrant_server.policy.question import DecisionReason, PermitField, PermitQuestion, Target

__all__ = [
    "NO_TOOL",
    "WILDCARD",
    "DecisionReason",
    "DelegationLink",
    "PermitDecision",
    "PermitExplanation",
    "PermitField",
    "PermitMismatch",
    "PermitQuestion",
    "ProxiedRequest",
    "Target",
    "decide",
    "decide_delegated",
    "explain",
    "may_exchange",
    "may_see",
    "may_see_delegated",
    "method_overrides",
    "query_names",
    "scopes_above",
    "source_scopes",
]
