"""Explains a permit decision: what each permit contributed to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from evergrant_server.core.access import Effect, EnforcementMode, Permit
from evergrant_server.policy.decision import PermitDecision, decide, failing_field, refused_scopes
from evergrant_server.policy.question import PermitField, PermitQuestion


@dataclass(frozen=True)
class PermitMismatch:
    """A permit that doesn't fit a request: the first field that fails, and the scopes that it refuses."""

    permit_name: str
    effect: Effect
    field: PermitField
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PermitExplanation:
    """A decision with what each permit contributed to it.

    `allowed_by`, `denied_by` and `observed_by` name the permits that fit, the deciding one left out.
    `why_not` begins with the permits that came nearest: those whose failing field is the last.
    """

    decision: PermitDecision
    decided_by: str | None
    allowed_by: tuple[str, ...]
    denied_by: tuple[str, ...]
    observed_by: tuple[str, ...]
    why_not: tuple[PermitMismatch, ...]

    @property
    def valid_until(self) -> datetime | None:
        return self.decision.valid_until


def explain(permits: Sequence[Permit], question: PermitQuestion) -> PermitExplanation:
    """The decision of `decide`, the permit that made it, and what each other one contributed."""
    decision = decide(permits, question)
    decided_by = None if decision.decided_by is None else decision.decided_by.name
    fitting: list[Permit] = []
    why_not: list[PermitMismatch] = []
    for permit in sorted(permits, key=lambda permit: permit.name):
        field = failing_field(permit, question)
        if field is not None:
            refused = refused_scopes(permit, question, field)
            why_not.append(PermitMismatch(permit.name, permit.effect, field, refused))
        elif permit.name != decided_by:
            fitting.append(permit)
    order = list(PermitField)
    why_not.sort(key=lambda mismatch: order.index(mismatch.field), reverse=True)
    denies = [permit for permit in fitting if permit.effect is Effect.DENY]
    return PermitExplanation(
        decision=decision,
        decided_by=decided_by,
        allowed_by=tuple(permit.name for permit in fitting if permit.effect is Effect.ALLOW),
        denied_by=tuple(permit.name for permit in denies if permit.mode is EnforcementMode.ENFORCE),
        observed_by=tuple(permit.name for permit in denies if permit.mode is EnforcementMode.OBSERVE),
        why_not=tuple(why_not),
    )
