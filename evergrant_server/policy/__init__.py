"""Permit decisions: may this app do that, and up to which scopes. Pure.

Owns the verdict and its reason. Doesn't own who is asking (api), where permits are kept
(store) or what a refusal looks like on the wire (core.errors).
"""

from evergrant_server.policy.permits import Reason, Verdict, above, decide, reaches
from evergrant_server.policy.sources import may_exchange, scopes_of_source

__all__ = ["Reason", "Verdict", "above", "decide", "may_exchange", "reaches", "scopes_of_source"]
