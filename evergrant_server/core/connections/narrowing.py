"""The slots of narrower access tokens, which stand beside a connection's own: one for a set of scopes."""

from collections.abc import Iterable
from hashlib import sha256

NARROWED = "narrowed:"  # begins their slots
MOST_NARROWED = 8  # of a connection at a time: each costs a refresh


def narrowed_slot(scopes: Iterable[str]) -> str:
    """The slot of the access token that was requested with exactly these scopes."""
    return NARROWED + sha256("\n".join(sorted(set(scopes))).encode()).hexdigest()[:32]
