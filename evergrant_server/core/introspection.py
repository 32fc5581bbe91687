"""What introspection says of a grant (RFC 7662). Pure.

A server that knows no refresh tokens answers `active: false` for every one of them (section
2.2 asks it to), so a no about a refresh token counts only where a yes has been heard.
"""

from dataclasses import dataclass
from enum import StrEnum

from evergrant_server.core.elsewhere import Weight


@dataclass(frozen=True)
class Seen:
    """Answers of the provider; None: it wasn't asked. `refresh_answers`: it has said yes to one before."""

    refresh_active: bool | None
    access_active: bool | None
    refresh_answers: bool


class Finding(StrEnum):
    REFRESH_TOKEN_ACTIVE = "refresh_token_active"
    ACCESS_TOKEN_ACTIVE = "access_token_active"
    REFRESH_TOKEN_INACTIVE = "refresh_token_inactive"
    ACCESS_TOKEN_INACTIVE = "access_token_inactive"
    NOTHING_LEARNT = "nothing_learnt"

    @property
    def weight(self) -> Weight | None:
        """What it says of the grant; None: nothing to worry about."""
        return _WEIGHTS.get(self)


_WEIGHTS = {
    Finding.REFRESH_TOKEN_INACTIVE: Weight.ENDED,
    Finding.ACCESS_TOKEN_INACTIVE: Weight.DOUBTED,  # never condemned by an access token alone
}


def judge_introspection(seen: Seen) -> Finding:
    if seen.refresh_active:
        return Finding.REFRESH_TOKEN_ACTIVE
    if seen.refresh_active is False and seen.refresh_answers:
        return Finding.REFRESH_TOKEN_INACTIVE
    if seen.access_active:
        return Finding.ACCESS_TOKEN_ACTIVE
    if seen.access_active is False:
        return Finding.ACCESS_TOKEN_INACTIVE
    return Finding.NOTHING_LEARNT
