"""The scopes that a caller may request: within the ceilings of its permits and of the integration."""

from collections.abc import Iterable, Mapping

from evergrant_server.api.http.authentication import Caller
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.policy import decide, scopes_above
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec
from providers.requests.authorization_url import token_slot_scope_params


def permitted_scopes(
    caller: Caller,
    integration: Integration,
    spec: ProviderSpec,
    subject: str,
    requested: tuple[str, ...] | None,
) -> tuple[str, ...]:
    """The requested or default scopes, without duplicates. Raises Failure SCOPE_NOT_PERMITTED."""
    scopes = tuple(dict.fromkeys(requested or integration.default_scopes or spec.default_scopes))
    require_permitted(caller, integration, spec, subject, scopes, Action.CONNECT)
    return scopes


def require_permitted(
    caller: Caller,
    integration: Integration,
    spec: ProviderSpec,
    subject: str,
    scopes: tuple[str, ...],
    action: Action,
) -> None:
    """Raise Failure SCOPE_NOT_PERMITTED for a scope above a ceiling. The offline scope is not counted."""
    counted = tuple(scope for scope in scopes if scope != spec.offline_scope)
    decision = decide(
        caller.permits, integration=integration.name, subject=subject, action=action, scopes=counted
    )
    if not decision.allowed or scopes_above(counted, integration.scope_ceiling):
        raise_scope_not_permitted(scopes_above(counted, decision.ceiling, integration.scope_ceiling))


async def permitted_slot_scopes(
    tx: Transaction,
    caller: Caller,
    integration: Integration,
    spec: ProviderSpec,
    subject: str,
    existing: Connection | None,
    requested: Mapping[str, tuple[str, ...]] | None,
) -> dict[str, tuple[str, ...]]:
    """The scopes to request for further token slots, by slot name.

    Those of the request, else the existing connection's, without slots that were revoked or that are
    above a ceiling of this caller. Raises Failure SCOPE_NOT_PERMITTED, INVALID_REQUEST.
    """
    if requested is not None:
        token_slot_scope_params(spec, requested)
        return {
            slot: permitted_scopes(caller, integration, spec, subject, scopes)
            for slot, scopes in requested.items()
        }
    kept: dict[str, tuple[str, ...]] = {}
    for slot, scopes in (await _unrevoked_slots(tx, existing) if existing is not None else {}).items():
        try:
            kept[slot] = permitted_scopes(caller, integration, spec, subject, scopes)
        except Failure as failure:
            if failure.code is not ErrorCode.SCOPE_NOT_PERMITTED:
                raise
    return kept


async def _unrevoked_slots(tx: Transaction, first: Connection) -> dict[str, tuple[str, ...]]:
    """The scopes of the further slots, without those whose connections were revoked."""
    kept: dict[str, tuple[str, ...]] = {}
    for slot, scopes in first.slot_scopes.items():
        label = first.label_of_slot(slot)
        found = await tx.connections.by_names(first.tenant, first.integration, first.subject, label)
        if found is None or found.state not in (LifecycleState.REVOKING, LifecycleState.REVOKED):
            kept[slot] = scopes
    return kept


def raise_scope_not_permitted(scopes: Iterable[str]) -> None:
    raise Failure(
        ErrorCode.SCOPE_NOT_PERMITTED,
        "A scope is above the ceiling of the permit or the integration.",
        scopes=" ".join(scopes),
    )
