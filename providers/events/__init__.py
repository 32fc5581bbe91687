"""What providers send us: verified by signature, and read into facts. Pure, but for `keys`.

Owns one small file per way of signing, and the table of them. Decides nothing about
connections: a fact names accounts, and what the news mean for a grant is `core.elsewhere`'s.
"""

from providers.events.base import (
    EventRejected,
    EventRequest,
    EventTrust,
    ProviderEvent,
    UnknownKey,
    VerifiedEvents,
    Verifier,
)
from providers.events.verifiers import VERIFIERS, needs_secret

__all__ = [
    "VERIFIERS",
    "EventRejected",
    "EventRequest",
    "EventTrust",
    "ProviderEvent",
    "UnknownKey",
    "VerifiedEvents",
    "Verifier",
    "needs_secret",
]
