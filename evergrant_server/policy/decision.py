"""Judges one action by an app's permits.

A request is allowed when a permit with `effect: allow` fits it and none with `effect: deny` does. The order
of permits means nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from evergrant_server.core.access import Action, Effect, EnforcementMode, Permit
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant
from evergrant_server.policy.networks import WILDCARD, comes_from, names_subject
from evergrant_server.policy.proxied import fits_method, fits_path, fits_tool
from evergrant_server.policy.question import (
    Aliases,
    DecisionReason,
    PermitField,
    PermitQuestion,
    Target,
    denied_scopes,
)

_DENY = Effect.DENY  # looked up once
_TELLS = {Action.DIRECTORY}
_REASONS = {
    PermitField.ACTION: DecisionReason.ACTION_NOT_PERMITTED,
    PermitField.METHOD: DecisionReason.REQUEST_NOT_PERMITTED,
    PermitField.PATH: DecisionReason.REQUEST_NOT_PERMITTED,
    PermitField.TOOL: DecisionReason.REQUEST_NOT_PERMITTED,
    PermitField.SCOPE: DecisionReason.SCOPE_ABOVE_CEILING,
    PermitField.EXACT_SCOPES: DecisionReason.TOKEN_ABOVE_REQUEST,
}
_RANKS = {field: rank for rank, field in enumerate(PermitField)}


@dataclass(frozen=True, slots=True)
class PermitDecision:
    """`permit` has decided, or came nearest. `observed` names the permits that would deny it if their mode
    were `enforce`; `above` has those that allowed it to the apps that the caller acts under."""

    allowed: bool
    reason: DecisionReason
    permit: Permit | None = None
    refused_scopes: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    above: tuple[Permit, ...] = ()

    @property
    def permit_name(self) -> str | None:
        return None if self.permit is None else self.permit.name

    @property
    def ceiling(self) -> tuple[str, ...] | None:
        """The scope ceiling of the permit; None: it has none."""
        return None if self.permit is None else self.permit.scope_ceiling

    @property
    def decided_by(self) -> Permit | None:
        """The permit that allowed or denied it. None: no permit did."""
        return self.permit if self.allowed or self.reason is DecisionReason.DENIED else None

    @property
    def valid_until(self) -> datetime | None:
        """When the first of the permits that decided ends. None: never, or none did."""
        ends = [
            permit.expires_at for permit in (self.decided_by, *self.above) if permit and permit.expires_at
        ]
        return min(ends, default=None)

    @property
    def needs_call_approval(self) -> bool:
        """Whether a person approves each request that it allows."""
        return any(permit is not None and permit.call_approval for permit in (self.permit, *self.above))


def decide(permits: Sequence[Permit], question: PermitQuestion) -> PermitDecision:
    """Judge one action. Permits never add up: one of them must allow all of it, and none deny any of it."""
    allowing: Permit | None = None
    denying: Permit | None = None
    nearest: tuple[int, Permit, PermitField] | None = None
    observed: tuple[str, ...] = ()
    for permit in _candidates(permits, question.target):
        field = failing_field(permit, question)
        if permit.effect is _DENY:
            if field is not None:
                continue
            if permit.mode is EnforcementMode.OBSERVE:
                observed = tuple(sorted((*observed, permit.name)))
            elif denying is None or permit.name < denying.name:
                denying = permit
        elif field is None:
            if allowing is None or permit.preference < allowing.preference:
                allowing = permit
        elif field in _REASONS:
            rank = _RANKS[field]
            if nearest is None or (-rank, permit.name) < (-nearest[0], nearest[1].name):
                nearest = (rank, permit, field)
    if denying is not None:
        refused = denied_scopes(question.scopes, denying.scopes or (), question.aliases)
        return PermitDecision(False, DecisionReason.DENIED, denying, refused, observed)
    if allowing is not None:
        return PermitDecision(True, DecisionReason.ALLOWED, allowing, (), observed)
    return _refusal(nearest, question, observed)


def _refusal(
    nearest: tuple[int, Permit, PermitField] | None, question: PermitQuestion, observed: tuple[str, ...]
) -> PermitDecision:
    if nearest is None:
        return PermitDecision(False, DecisionReason.NO_PERMIT, None, (), observed)
    _, permit, field = nearest
    refused = refused_scopes(permit, question, field)
    return PermitDecision(False, _REASONS[field], permit, refused, observed)


def refused_scopes(permit: Permit, question: PermitQuestion, field: PermitField) -> tuple[str, ...]:
    """The scopes for which an allowing permit fails with this field."""
    if field is PermitField.SCOPE and permit.effect is Effect.ALLOW:
        return scopes_above(question.scopes, permit.scope_ceiling)
    return question.excess if field is PermitField.EXACT_SCOPES else ()


def may_see(permits: Sequence[Permit], target: Target, at: datetime, address: str | None) -> bool:
    """True when any action on it is allowed: the app may learn that it exists. A directory tells, and learns
    nothing."""
    allowed: set[Action] = set()
    denied: set[Action] = set()
    for permit in _candidates(permits, target):
        if _uncovered(permit, target, at, address) is not None:
            continue
        if permit.effect is Effect.ALLOW:
            allowed.update(permit.actions)
        elif permit.mode is EnforcementMode.ENFORCE and permit.denies_all:
            denied.update(permit.actions)
    return not allowed - _TELLS <= denied


def _candidates(permits: Sequence[Permit], target: Target) -> Sequence[Permit]:
    """Those that can fit by their names: most permits of an app with many are for something else."""
    integration, subject = target.integration, target.subject
    if integration is None or subject is None:
        return permits
    return [
        permit
        for permit in permits
        if permit.integration in (integration, WILDCARD) and names_subject(permit.subjects, subject)
    ]


def scopes_above(scopes: Iterable[str], *ceilings: tuple[str, ...] | None) -> tuple[str, ...]:
    """The scopes that at least one of the ceilings doesn't have. None is no ceiling."""
    return tuple(
        scope for scope in scopes if any(ceiling is not None and scope not in ceiling for ceiling in ceilings)
    )


def failing_field(permit: Permit, question: PermitQuestion) -> PermitField | None:
    """The first field for which a permit doesn't fit a request, or None."""
    uncovered = _uncovered(permit, question.target, question.at, question.address)
    if uncovered is not None:
        return uncovered
    scopes = question.scopes
    if question.action not in permit.actions:
        return PermitField.ACTION
    if not fits_method(permit, question.request):
        return PermitField.METHOD
    if not fits_path(permit, question.request):
        return PermitField.PATH
    if not fits_tool(permit, question.request):
        return PermitField.TOOL
    if permit.effect is Effect.DENY:
        denied = permit.scopes
        none = denied is not None and not denied_scopes(scopes, denied, question.aliases)
        return PermitField.SCOPE if none else None
    ceiling = permit.scope_ceiling
    if ceiling is not None and scopes_above(scopes, ceiling):
        return PermitField.SCOPE
    return PermitField.EXACT_SCOPES if permit.exact_scopes and question.excess else None


def _uncovered(permit: Permit, target: Target, at: datetime, address: str | None) -> PermitField | None:
    """The first field for which a permit, apart from its actions, isn't about this target, moment or caller.

    A deny is about each request that is for a part of what it names, for the whole that holds it, or from a
    caller whose address isn't known.
    """
    denies = permit.effect is _DENY
    integration, provider, subject, connection_id = target
    if permit.integration not in (WILDCARD, integration) and not (denies and integration is None):
        return PermitField.INTEGRATION
    if permit.provider not in (WILDCARD, provider) and not (denies and provider is None):
        return PermitField.PROVIDER
    if not (names_subject(permit.subjects, subject) or (denies and subject is None)):
        return PermitField.SUBJECT
    if permit.connections is not None and connection_id not in permit.connections:
        holds_them = denies and connection_id is None and subject is None
        if not holds_them:
            return PermitField.CONNECTION
    if permit.expires_at is not None and at >= permit.expires_at:
        return PermitField.EXPIRY
    if permit.sources is not None and not comes_from(permit.sources, address, otherwise=denies):
        return PermitField.SOURCE
    return None


def source_scopes(source: Connection, grant: Grant | None, offline: str | None) -> tuple[str, ...]:
    """All that its token can do. `offline`, the scope for a refresh token, permits nothing by itself."""
    scopes = source.requested_scopes if grant is None else grant.scopes
    return tuple(scope for scope in scopes if scope != offline)


def may_exchange(
    permits: Sequence[Permit],
    source: Connection,
    scopes: tuple[str, ...],
    at: datetime,
    aliases: Aliases = (),
) -> PermitDecision:
    """Judge an app's permits as a lease of the source with these scopes would.

    A worker exchanges, later too, so there is no caller's address: no permit with `sources` allows it. Nor
    does one with `exact_scopes`, because the exchange requests no scopes of the source.
    """
    question = PermitQuestion(
        Target.of(source), Action.TOKEN, at, scopes=scopes, excess=scopes, aliases=aliases
    )
    return decide(permits, question)
