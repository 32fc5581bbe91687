"""Judges an `active` answer of introspection (RFC 7662). Pure.

When to introspect: `activities.maintenance.introspection`. What follows: `external_revocation`.

A server that can't introspect refresh tokens answers `active: false` for each of them (section
2.2), so that answer counts only if the server has said `active: true` of one before.
"""

from dataclasses import dataclass
from enum import StrEnum

from evergrant_server.core.provider_events.external_revocation import Certainty


@dataclass(frozen=True)
class IntrospectionAnswers:
    """The provider's answers; None: not introspected. `refresh_answers`: it can introspect refresh tokens."""

    refresh_active: bool | None
    access_active: bool | None
    refresh_answers: bool


class IntrospectionFinding(StrEnum):
    REFRESH_TOKEN_ACTIVE = "refresh_token_active"
    ACCESS_TOKEN_ACTIVE = "access_token_active"
    REFRESH_TOKEN_INACTIVE = "refresh_token_inactive"
    ACCESS_TOKEN_INACTIVE = "access_token_inactive"
    NOTHING_LEARNT = "nothing_learnt"

    @property
    def certainty(self) -> Certainty | None:
        """How surely the grant has ended; None: the finding is no sign of it."""
        return _CERTAINTIES.get(self)


_CERTAINTIES = {
    IntrospectionFinding.REFRESH_TOKEN_INACTIVE: Certainty.ENDED,
    IntrospectionFinding.ACCESS_TOKEN_INACTIVE: Certainty.SUSPECTED,  # an access token alone proves no end
}


def judge_introspection(seen: IntrospectionAnswers) -> IntrospectionFinding:
    if seen.refresh_active:
        return IntrospectionFinding.REFRESH_TOKEN_ACTIVE
    if seen.refresh_active is False and seen.refresh_answers:
        return IntrospectionFinding.REFRESH_TOKEN_INACTIVE
    if seen.access_active:
        return IntrospectionFinding.ACCESS_TOKEN_ACTIVE
    if seen.access_active is False:
        return IntrospectionFinding.ACCESS_TOKEN_INACTIVE
    return IntrospectionFinding.NOTHING_LEARNT
