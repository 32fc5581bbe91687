"""Permit decisions: may this app do that, and up to which scopes. Pure.

Owns the decision and its reason. Doesn't own authentication (api), where permits are kept
(store) or what a refusal looks like on the wire (core.errors).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from evergrant_server.core.access import Action, Permit
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant

WILDCARD = "*"


class DecisionReason(StrEnum):
    """The reason of a decision; the API turns it into an error code."""

    ALLOWED = "allowed"
    NO_PERMIT = "no_permit"  # nothing covers it: for this app it doesn't exist
    ACTION_NOT_PERMITTED = "action_not_permitted"
    SCOPE_ABOVE_CEILING = "scope_above_ceiling"


@dataclass(frozen=True)
class PermitDecision:
    """`ceiling` is the scope ceiling of the permit that decided; None means it has none."""

    allowed: bool
    permit_name: str | None
    reason: DecisionReason
    ceiling: tuple[str, ...] | None = None


def decide(
    permits: Sequence[Permit],
    *,
    integration: str | None,
    subject: str | None,
    action: Action,
    scopes: Iterable[str] = (),
) -> PermitDecision:
    """Judge one action. Permits never add up: one of them must allow all of it.

    `subject` None means the integration itself, `integration` None the whole tenant: only
    permits for every subject, or every integration, reach those.
    """
    covering = [permit for permit in permits if _covers(permit, integration, subject)]
    if not covering:
        return PermitDecision(False, None, DecisionReason.NO_PERMIT)
    acting = sorted((p for p in covering if action in p.actions), key=lambda permit: permit.name)
    if not acting:
        return PermitDecision(False, None, DecisionReason.ACTION_NOT_PERMITTED)
    wanted = tuple(scopes)
    for permit in acting:
        if not scopes_above(wanted, permit.scope_ceiling):
            return PermitDecision(True, permit.name, DecisionReason.ALLOWED, permit.scope_ceiling)
    return PermitDecision(False, acting[0].name, DecisionReason.SCOPE_ABOVE_CEILING, acting[0].scope_ceiling)


class PermitField(StrEnum):
    """A field of a permit, in the order in which a permit is compared with a request."""

    INTEGRATION = "integration"
    SUBJECT = "subject"
    ACTION = "action"
    SCOPE = "scope"


@dataclass(frozen=True)
class PermitMismatch:
    """A permit that doesn't allow a request: the first field that fails, and the scopes above its ceiling."""

    permit_name: str
    field: PermitField
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PermitExplanation:
    """A decision with what each permit contributed to it.

    `why_not` begins with the permits that came nearest: those whose failing field is the last.
    """

    decision: PermitDecision
    decided_by: str | None
    also_allowed_by: tuple[str, ...]
    why_not: tuple[PermitMismatch, ...]


def explain(
    permits: Sequence[Permit],
    *,
    integration: str | None,
    subject: str | None,
    action: Action,
    scopes: Iterable[str] = (),
) -> PermitExplanation:
    """The decision of `decide`, the permit that allowed it, and why each other one didn't."""
    wanted = tuple(scopes)
    decision = decide(permits, integration=integration, subject=subject, action=action, scopes=wanted)
    allowing: list[str] = []
    why_not: list[PermitMismatch] = []
    for permit in sorted(permits, key=lambda permit: permit.name):
        field = _first_failing_field(permit, integration, subject, action, wanted)
        if field is None:
            allowing.append(permit.name)
        else:
            above = scopes_above(wanted, permit.scope_ceiling) if field is PermitField.SCOPE else ()
            why_not.append(PermitMismatch(permit.name, field, above))
    order = list(PermitField)
    why_not.sort(key=lambda mismatch: order.index(mismatch.field), reverse=True)
    decided_by = decision.permit_name if decision.allowed else None
    others = tuple(name for name in allowing if name != decided_by)
    return PermitExplanation(decision, decided_by, others, tuple(why_not))


def may_see(permits: Sequence[Permit], *, integration: str | None, subject: str | None) -> bool:
    """True when a permit of the app covers it, for any action: the app may learn that it exists."""
    return any(_covers(permit, integration, subject) for permit in permits)


def scopes_above(scopes: Iterable[str], *ceilings: tuple[str, ...] | None) -> tuple[str, ...]:
    """The scopes that at least one of the ceilings doesn't have. None is no ceiling."""
    return tuple(
        scope for scope in scopes if any(ceiling is not None and scope not in ceiling for ceiling in ceilings)
    )


def _covers(permit: Permit, integration: str | None, subject: str | None) -> bool:
    if permit.integration != WILDCARD and permit.integration != integration:
        return False
    return WILDCARD in permit.subjects or (
        subject is not None and subject != WILDCARD and subject in permit.subjects
    )


def _first_failing_field(
    permit: Permit, integration: str | None, subject: str | None, action: Action, scopes: tuple[str, ...]
) -> PermitField | None:
    if permit.integration not in (WILDCARD, integration):
        return PermitField.INTEGRATION
    if not _covers(permit, integration, subject):
        return PermitField.SUBJECT
    if action not in permit.actions:
        return PermitField.ACTION
    return PermitField.SCOPE if scopes_above(scopes, permit.scope_ceiling) else None


def source_scopes(source: Connection, grant: Grant | None, offline: str | None) -> tuple[str, ...]:
    """All that its token can do. `offline`, the scope for a refresh token, permits nothing by itself."""
    scopes = source.requested_scopes if grant is None else grant.scopes
    return tuple(scope for scope in scopes if scope != offline)


def may_exchange(permits: Sequence[Permit], source: Connection, scopes: Sequence[str]) -> PermitDecision:
    """Judge an app's permits as a lease of the source with these scopes would."""
    return decide(
        permits,
        integration=source.integration,
        subject=source.subject,
        action=Action.TOKEN,
        scopes=scopes,
    )
