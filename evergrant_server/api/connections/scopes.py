"""What a caller may request: scopes within the ceilings of its permits and of the integration, and
source connections of token exchange (RFC 8693).

A connection records the app in whose name its source is exchanged. The worker checks that app's
permits before each exchange; the API checks them here and signals workflows when they change.
"""

from dataclasses import dataclass

from evergrant_server.access.judged_request import refusal
from evergrant_server.access.transactions import signal_connection
from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.access import Action, App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.connection import ProviderChanged
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import retry_exchanges_message
from evergrant_server.policy import PermitDecision, Target, may_exchange, scopes_above, source_scopes
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec
from providers.requests.authorization_url import token_slot_scope_params


@dataclass(frozen=True)
class ScopeCheck:
    """Judges the scopes that a caller requests for a subject at an integration."""

    call: ApiCall
    integration: Integration
    spec: ProviderSpec
    subject: str
    connection_id: ConnectionId | None = None  # of one that exists

    @property
    def defaults(self) -> tuple[str, ...]:
        """What a link asks for where no request says scopes."""
        return self.integration.scopes_by_default or self.spec.default_scopes

    def permitted(self, requested: tuple[str, ...] | None) -> tuple[str, ...]:
        """The requested or default scopes, without duplicates. Raises Failure SCOPE_NOT_PERMITTED."""
        return self.require(tuple(dict.fromkeys(requested or self.defaults)), Action.CONNECT)

    def require(self, scopes: tuple[str, ...], action: Action) -> tuple[str, ...]:
        """The scopes. Raises SCOPE_NOT_PERMITTED for one above a ceiling, except the offline scope."""
        counted = tuple(scope for scope in scopes if scope != self.spec.offline_scope)
        integration = self.integration
        target = Target(integration.name, integration.provider, self.subject, self.connection_id)
        decision = self.call.judge(action, target, counted)
        above = scopes_above(counted, integration.scope_ceiling)
        if not decision.allowed or above:
            raise refusal(decision, above)
        return scopes

    async def permitted_slots(
        self, tx: Transaction, existing: Connection | None, requested: dict[str, tuple[str, ...]] | None
    ) -> dict[str, tuple[str, ...]]:
        """The scopes to request for further token slots, by slot name.

        Those of the request, else the existing connection's, without slots that were revoked or that are
        above a ceiling of this caller. Raises Failure SCOPE_NOT_PERMITTED, INVALID_REQUEST.
        """
        if requested is not None:
            token_slot_scope_params(self.spec, requested)
            return {slot: self.permitted(scopes) for slot, scopes in requested.items()}
        kept: dict[str, tuple[str, ...]] = {}
        for slot, scopes in (await _unrevoked_slots(tx, existing) if existing is not None else {}).items():
            try:
                kept[slot] = self.permitted(scopes)
            except Failure as failure:
                if failure.code is not ErrorCode.SCOPE_NOT_PERMITTED:
                    raise
        return kept


async def _unrevoked_slots(tx: Transaction, first: Connection) -> dict[str, tuple[str, ...]]:
    """The scopes of the further slots, without those whose connections were revoked."""
    kept: dict[str, tuple[str, ...]] = {}
    for slot, scopes in first.slot_scopes.items():
        label = first.label_of_slot(slot)
        connection = await tx.connections.by_names(first.tenant, first.integration, first.subject, label)
        if connection is None or connection.state not in (LifecycleState.REVOKING, LifecycleState.REVOKED):
            kept[slot] = scopes
    return kept


# --- source connections ---------------------------------------------------------------


async def require_source_permit(tx: Transaction, call: ApiCall, source_id: str) -> None:
    """Check that the caller may lease the source with all its scopes.

    Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED as a lease would, and
    INVALID_REQUEST for a connection whose requests are signed.
    """
    source = await call.visible_connection(tx, source_id, Action.TOKEN)
    if not source.flow.is_bearer:
        detail = "Its requests are signed: it has no bearer token to exchange."
        raise invalid_request("source", detail)
    decision = await _exchange_decision(tx, call, source)
    if not decision.allowed:
        raise refusal(decision)


async def take_over_exchange(tx: Transaction, call: ApiCall, connection: Connection) -> Connection:
    """Record the caller as the app in whose name the source is exchanged, if it may lease the source.

    For any other caller the connection stays as it is.
    """
    ended = connection.state.is_final or connection.state is LifecycleState.REVOKING
    if connection.source is None or connection.source_app == call.caller.app.id or ended:
        return connection
    source = await tx.connections.get_authentic(connection.tenant, connection.source)
    if source is None or not (await _exchange_decision(tx, call, source)).allowed:
        return connection
    app_id = call.caller.app.id
    after = await tx.connections.replace_names(
        connection.with_source_app(app_id), expected=connection.revision
    )
    detail = {"source": source.id, "source_app": app_id, "before": connection.source_app}
    await call.record(tx, AuditAction.SOURCE_APP_CHANGED, after.id, **detail)
    message = ProviderChanged(version=after.revision, context=call.context)
    await signal_connection(tx, after, SignalName.PROVIDER_CHANGED, message, call.now)
    return after


async def retry_waiting_connections(tx: Transaction, call: ApiCall, app: App) -> None:
    """Have a worker tell failing connections to try again: those that exchange in the app's name."""
    if (await tx.connections.waiting_for_source_app(app.tenant, app.id, limit=1)).last is not None:
        await tx.outbox.add(retry_exchanges_message(app, call.context, call.now))


async def _exchange_decision(tx: Transaction, call: ApiCall, source: Connection) -> PermitDecision:
    """The decision about an exchange, for all scopes of the source's token."""
    grant = await tx.grants.get(source.tenant, source.id)
    scopes = source_scopes(source, grant, call.api.registry.offline_scope(source.provider))
    return may_exchange(
        call.caller.permits, source, scopes, call.now, call.api.registry.scope_aliases(source.provider)
    )
