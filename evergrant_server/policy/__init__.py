"""Permit decisions: may this app do that, and up to which scopes. Pure.

Owns the verdict and its reason. Doesn't own authentication (api), where permits are kept
(store) or what a refusal looks like on the wire (core.errors).
"""

from evergrant_server.policy.permits import DecisionReason, PermitDecision, decide, may_see, scopes_above
from evergrant_server.policy.sources import may_exchange, source_scopes

__all__ = [
    "DecisionReason",
    "PermitDecision",
    "decide",
    "may_exchange",
    "may_see",
    "scopes_above",
    "source_scopes",
]
