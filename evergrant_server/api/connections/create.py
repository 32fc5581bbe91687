"""Creates connections, or finds the live one of the same names, in the caller's transaction."""

from collections.abc import Mapping
from dataclasses import replace

from evergrant_server.api.connections.consents import (
    CLIENT_GRANT_DEADLINE,
    connect_url,
    open_consent,
    request_client_grant,
    request_consent,
    require_return_to,
)
from evergrant_server.api.connections.flows import require_flow_allowed, usable_flow
from evergrant_server.api.connections.reauthorization import (
    ConnectionRequest,
    ConnectionWithLink,
    consenting_connection,
    has_pending_import,
    is_reusable,
    require_same_settings,
    scopes_to_request,
    set_expected_account,
)
from evergrant_server.api.connections.scopes import permitted_scopes, permitted_slot_scopes
from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.outbox_messages import connection_start_message
from evergrant_server.api.integrations.definitions import integration_spec, require_ready
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.policy import DecisionReason, decide
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec

_CLIENT_GRANT_RETRY_S = 1.0

SlotScopesMap = Mapping[str, tuple[str, ...]]


class ConnectionSetup:
    """Finds or creates connections for one caller."""

    def __init__(self, api: ApiContext, caller: Caller, context: RequestContext) -> None:
        self._api = api
        self._caller = caller
        self._context = context
        self._now = api.clock.now()

    async def find_or_create(self, tx: Transaction, wanted: ConnectionRequest) -> ConnectionWithLink:
        """The live connection of these names with its link, or a new connection.

        Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED, DISCOVERY_FAILED,
        INVALID_REQUEST for a `return_to` outside the app's list, CONSENT_EXPIRED while the workflow
        closes an expired consent.
        """
        integration = await self._require_integration(tx, wanted.integration, wanted.subject)
        require_return_to(self._caller, wanted.return_to)
        found = await tx.connections.by_names(
            self._caller.tenant, wanted.integration, wanted.subject, wanted.label
        )
        live = None if found is None or found.state.is_final else found
        if live is not None:
            require_same_settings(live, wanted)
        spec = await integration_spec(tx, self._api.registry, integration)
        flow = live.flow if live is not None else usable_flow(spec, integration, wanted.flow)
        if wanted.slot_scopes and flow is not Flow.AUTHORIZATION_CODE:
            detail = "Only the flow authorization_code fills further token slots."
            raise Failure(ErrorCode.INVALID_REQUEST, detail, field="slot_scopes")
        requested = scopes_to_request(wanted, live.requested_scopes if live is not None else ())
        scopes = permitted_scopes(self._caller, integration, spec, wanted.subject, requested)
        slots = await permitted_slot_scopes(
            tx, self._caller, integration, spec, wanted.subject, live, wanted.slot_scopes
        )
        if live is None:
            return await self._create(tx, integration, spec, wanted, scopes, slots, flow)
        if wanted.choice not in (None, live.choice):
            live = await set_expected_account(tx, live, wanted.choice)
        return await self._existing_with_link(tx, integration, spec, live, scopes, slots, wanted)

    async def _require_integration(self, tx: Transaction, name: str, subject: str) -> Integration:
        """The integration, locked against deletion, if the caller may connect the subject there."""
        decision = decide(self._caller.permits, integration=name, subject=subject, action=Action.CONNECT)
        found = await tx.integrations.by_name(self._caller.tenant, name)
        if found is None or decision.reason is DecisionReason.NO_PERMIT:
            raise Failure(ErrorCode.NOT_FOUND)
        if not decision.allowed:
            raise Failure(ErrorCode.NOT_PERMITTED, "This needs the action connect.")
        require_ready(found)
        await tx.integrations.lock_against_deletion(found)
        return found

    async def _create(
        self,
        tx: Transaction,
        integration: Integration,
        spec: ProviderSpec,
        wanted: ConnectionRequest,
        scopes: tuple[str, ...],
        slots: SlotScopesMap,
        flow: Flow,
    ) -> ConnectionWithLink:
        supplied = wanted.supplied_tokens(spec, flow)
        connection = await self._add(tx, integration, wanted, scopes, slots, flow)
        if flow.is_client_grant or flow.is_static:
            await request_client_grant(tx, connection, scopes, self._context, self._now, supplied)
            return ConnectionWithLink(connection, True)
        consent, url = await request_consent(
            tx,
            self._api,
            self._caller,
            self._context,
            connection,
            scopes,
            wanted.return_to,
            slots,
        )
        return ConnectionWithLink(connection, True, consent, url)

    async def _add(
        self,
        tx: Transaction,
        integration: Integration,
        wanted: ConnectionRequest,
        scopes: tuple[str, ...],
        slots: SlotScopesMap,
        flow: Flow,
    ) -> Connection:
        """Write the row, the message that starts its workflow, and the audit record."""
        without_subject = flow.is_client_grant or flow.is_static
        consent_ttl = CLIENT_GRANT_DEADLINE if without_subject else self._api.settings.consent_ttl
        connection = Connection(
            tenant=integration.tenant,
            id=ConnectionId(new_id("con")),
            integration_id=integration.id,
            integration=integration.name,
            provider=integration.provider,
            subject=wanted.subject,
            label=wanted.label,
            requested_scopes=scopes,
            flow=flow,
            target=wanted.target,
            source=wanted.source,
            source_app=None if wanted.source is None else self._caller.app.id,
            choice=wanted.choice,
            slot_scopes=dict(slots),
            created_at=self._now,
            changed_at=self._now,
            consent_deadline=self._now + consent_ttl,
        )
        await tx.connections.add_new(connection)
        await tx.outbox.add(connection_start_message(connection, self._api.ring, self._context, self._now))
        detail = {
            "integration": integration.name,
            "label": wanted.label,
            "scopes": list(scopes),
            "flow": flow,
        }
        await self._record(tx, AuditAction.CONNECTION_CREATED, connection, **detail)
        return connection

    async def _existing_with_link(
        self,
        tx: Transaction,
        integration: Integration,
        spec: ProviderSpec,
        named: Connection,
        scopes: tuple[str, ...],
        slots: SlotScopesMap,
        wanted: ConnectionRequest,
    ) -> ConnectionWithLink:
        """The live connection, with an open or new link if its subject has to consent."""
        waits = named.state in (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)
        if not waits or named.flow.is_static:
            return ConnectionWithLink(named, False)
        if named.flow.is_client_grant:
            return await self._retry_client_grant(tx, named, scopes, wanted)
        require_flow_allowed(named.flow, self._api)
        if await has_pending_import(tx, named):
            # a worker is about to install its grant: no consent is needed
            raise Failure(ErrorCode.REFRESH_PENDING, "A worker is installing its import.", retry_after=1.0)
        connection = await consenting_connection(tx, named)
        if connection is not named:
            wanted = replace(wanted, scopes=None)
            subject, caller = connection.subject, self._caller
            scopes = permitted_scopes(caller, integration, spec, subject, connection.requested_scopes)
            slots = await permitted_slot_scopes(tx, caller, integration, spec, subject, connection, None)
        existing = await open_consent(tx, connection, self._now)
        if existing is not None and is_reusable(existing, wanted):
            link = await tx.consents.connect_link(existing)
            return ConnectionWithLink(named, False, existing, connect_url(self._api, link.reveal()))
        if connection.state is LifecycleState.PENDING_CONSENT and connection.consent_deadline <= self._now:
            detail = "Its consent is being closed; try again."
            raise Failure(ErrorCode.CONSENT_EXPIRED, detail, retry_after=5.0)
        consent, url = await request_consent(
            tx,
            self._api,
            self._caller,
            self._context,
            connection,
            scopes,
            wanted.return_to,
            slots,
        )
        await self._record(tx, AuditAction.REAUTHORIZATION_REQUESTED, connection, consent_id=consent.id)
        return ConnectionWithLink(named, False, consent, url)

    async def _retry_client_grant(
        self, tx: Transaction, connection: Connection, scopes: tuple[str, ...], wanted: ConnectionRequest
    ) -> ConnectionWithLink:
        """Retry a failed client grant for `POST /v1/connections`, but not for a lease, which apps poll."""
        code = connection.reason or ErrorCode.REFRESH_PENDING
        requested = await tx.consents.received_consent(connection.tenant, connection.id) is not None
        if wanted.for_lease:
            retry_after = _CLIENT_GRANT_RETRY_S if requested else None
            raise Failure(code, retry_after=retry_after, connection_id=connection.id)
        if not requested:
            consent = await request_client_grant(tx, connection, scopes, self._context, self._now)
            await self._record(tx, AuditAction.REAUTHORIZATION_REQUESTED, connection, consent_id=consent.id)
        return ConnectionWithLink(connection, False)

    async def _record(
        self, tx: Transaction, action: AuditAction, connection: Connection, **detail: object
    ) -> None:
        await record(tx, connection.tenant, action, connection.id, self._context, self._now, **detail)
