"""Connections and consents as they begin: rows, outbox and audit in the transaction of the caller."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from evergrant_server import audit
from evergrant_server.api.connections.reauthorization import (
    ConnectionRequest,
    ConnectionWithLink,
    consenting_connection,
    has_pending_import,
    is_reusable,
    require_same_settings,
    scopes_to_request,
    set_expected_account,
    unrevoked_slots,
)
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.outbox_messages import connection_signal_message, connection_start_message
from evergrant_server.api.integrations.definitions import integration_spec
from evergrant_server.api.pages.implicit import require_flow_allowed
from evergrant_server.core.access import Action, Integration, IntegrationState
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import (
    LINK_BYTES,
    Consent,
    ConsentKind,
    ConsentStatus,
    hash_link,
)
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.imported_tokens import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, ConsentId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import ConsentGranted
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.secret import Secret
from evergrant_server.policy import DecisionReason, decide, scopes_above
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec
from providers.requests.authorization_url import token_slot_scope_params
from providers.requests.dpop import with_dpop_binding

CLIENT_GRANT_DEADLINE = timedelta(
    days=7
)  # an admin's time to repair what keeps the first token from being made
_CLIENT_GRANT_RETRY_S = 1.0


class ConnectionSetup:
    """Creates connections and consents for one caller, in the caller's transaction."""

    def __init__(self, parts: ApiContext, caller: Caller, asked: RequestContext) -> None:
        self._parts = parts
        self._caller = caller
        self.request_context = asked
        self._now = parts.clock.now()

    async def find_or_create(self, tx: Transaction, wanted: ConnectionRequest) -> ConnectionWithLink:
        """The live connection of these names with its link, or a new one.

        Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED, DISCOVERY_FAILED,
        INVALID_REQUEST for a `return_to` that isn't the app's, CONSENT_EXPIRED while an
        unanswered consent is being closed.
        """
        integration = await self.require_integration(tx, wanted.integration, wanted.subject)
        self._check_return_to(wanted.return_to)
        found = await tx.connections.by_names(
            self._caller.tenant, wanted.integration, wanted.subject, wanted.label
        )
        live = found is not None and not found.state.is_final
        if found is not None and live:
            require_same_settings(found, wanted)
        flow = await self._flow_to_use(tx, integration, found if live else None, wanted.flow)
        if wanted.slot_scopes and flow is not Flow.AUTHORIZATION_CODE:
            detail = "Only an authorization code brings further chains."
            raise Failure(ErrorCode.INVALID_REQUEST, detail, field="slot_scopes")
        before = found.requested_scopes if found is not None and live else ()
        scopes = await self.permitted_scopes(
            tx, integration, wanted.subject, scopes_to_request(wanted, before)
        )
        chains = await self.permitted_slot_scopes(
            tx, integration, wanted.subject, found if live else None, wanted.slot_scopes
        )
        if found is not None and live:
            if wanted.choice not in (None, found.choice):
                found = await set_expected_account(tx, found, wanted.choice)
            return await self._existing_with_link(tx, found, scopes, chains, wanted)
        brought = wanted.supplied_tokens(await integration_spec(tx, self._parts.registry, integration), flow)
        connection = await self._create(tx, integration, wanted, scopes, chains, flow)
        if flow.is_client_grant or flow.is_static:
            await request_client_grant(tx, connection, scopes, self.request_context, self._now, brought)
            return ConnectionWithLink(connection, True)
        consent, url = await self.request_consent(tx, connection, scopes, wanted.return_to, chains)
        return ConnectionWithLink(connection, True, consent, url)

    async def require_integration(self, tx: Transaction, name: str, subject: str) -> Integration:
        """The integration, when this app may connect this subject there and it is ready."""
        verdict = decide(self._caller.permits, integration=name, subject=subject, action=Action.CONNECT)
        found = await tx.integrations.by_name(self._caller.tenant, name)
        if found is None or verdict.reason is DecisionReason.NO_PERMIT:
            raise Failure(ErrorCode.NOT_FOUND)
        if not verdict.allowed:
            raise Failure(ErrorCode.NOT_PERMITTED, "That needs the action connect.")
        require_ready(found)
        await tx.integrations.lock_against_deletion(found)
        return found

    async def permitted_scopes(
        self, tx: Transaction, integration: Integration, subject: str, asked: tuple[str, ...] | None
    ) -> tuple[str, ...]:
        """What to ask for. Raises Failure SCOPE_NOT_PERMITTED above a ceiling."""
        spec = await integration_spec(tx, self._parts.registry, integration)
        scopes = tuple(dict.fromkeys(asked or integration.default_scopes or spec.default_scopes))
        counted = tuple(scope for scope in scopes if scope != spec.offline_scope)
        verdict = decide(
            self._caller.permits,
            integration=integration.name,
            subject=subject,
            action=Action.CONNECT,
            scopes=counted,
        )
        if not verdict.allowed or scopes_above(counted, integration.scope_ceiling):
            raise_scope_not_permitted(scopes_above(counted, verdict.ceiling, integration.scope_ceiling))
        return scopes

    async def permitted_slot_scopes(
        self,
        tx: Transaction,
        integration: Integration,
        subject: str,
        there: Connection | None,
        asked: Mapping[str, tuple[str, ...]] | None,
    ) -> dict[str, tuple[str, ...]]:
        """What to ask for further chains: what is asked now, else as before, but for those that were
        revoked and those above a ceiling. Raises Failure SCOPE_NOT_PERMITTED, INVALID_REQUEST."""
        if asked is not None:
            token_slot_scope_params(await integration_spec(tx, self._parts.registry, integration), asked)
            return {
                name: await self.permitted_scopes(tx, integration, subject, its)
                for name, its in asked.items()
            }
        chains: dict[str, tuple[str, ...]] = {}
        for name, its in (await unrevoked_slots(tx, there) if there is not None else {}).items():
            try:
                chains[name] = await self.permitted_scopes(tx, integration, subject, its)
            except Failure as failure:
                if failure.code is not ErrorCode.SCOPE_NOT_PERMITTED:
                    raise  # for another app to ask: that chain stays as it is
        return chains

    async def _flow_to_use(
        self, tx: Transaction, integration: Integration, there: Connection | None, asked: Flow | None
    ) -> Flow:
        """How the connection comes by its tokens. Raises Failure INVALID_REQUEST."""
        if there is not None:
            return there.flow
        spec = await integration_spec(tx, self._parts.registry, integration)
        flow = asked or default_flow(spec)
        with_dpop_binding(spec, integration, None).require_usable(flow)
        return flow

    async def request_consent(
        self,
        tx: Transaction,
        connection: Connection,
        scopes: tuple[str, ...],
        return_to: str | None,
        chains: Mapping[str, tuple[str, ...]],
    ) -> tuple[Consent, str]:
        """A new consent and its connect link."""
        self._check_return_to(return_to)
        require_flow_allowed(connection.flow, self._parts)
        link = secrets.token_urlsafe(LINK_BYTES)
        waits = connection.state is LifecycleState.PENDING_CONSENT
        device = connection.flow is Flow.DEVICE_CODE  # a worker gets a code, and asks about it
        consent = Consent(
            tenant=connection.tenant,
            id=ConsentId(new_id("cns")),
            connection_id=connection.id,
            integration_id=connection.integration_id,
            kind=ConsentKind.DEVICE if device else ConsentKind.CODE,
            status=ConsentStatus.CODE_RECEIVED if device else ConsentStatus.OPEN,
            scopes=scopes,
            slot_scopes=dict(chains),
            return_to=return_to,
            link_hash=hash_link(link),
            created_at=self._now,
            # a pending connection ends at its deadline, and its links with it
            expires_at=connection.consent_deadline if waits else self._now + self._parts.settings.consent_ttl,
            by=self.request_context.by,
            trace_id=self.request_context.trace_id,
        )
        await tx.consents.add(consent, Secret(link))
        if device:
            await _signal_consent_granted(tx, connection, consent, self.request_context, self._now)
        return consent, self._connect_url(link)

    async def record(self, tx: Transaction, action: AuditAction, what: str, **detail: object) -> None:
        entry = AuditEntry(
            tenant=self._caller.tenant,
            at=self._now,
            action=action,
            object=what,
            context=self.request_context,
            detail=detail,
        )
        await audit.append(tx, entry)

    async def _existing_with_link(
        self,
        tx: Transaction,
        connection: Connection,
        scopes: tuple[str, ...],
        chains: Mapping[str, tuple[str, ...]],
        wanted: ConnectionRequest,
    ) -> ConnectionWithLink:
        if connection.state not in (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH):
            return ConnectionWithLink(connection, False)
        if connection.flow.is_static:
            return ConnectionWithLink(connection, False)
        if connection.flow.is_client_grant:
            return await self._retry_client_grant(tx, connection, scopes, wanted)
        require_flow_allowed(connection.flow, self._parts)
        if await has_pending_import(tx, connection):
            # its grant is on its way to a worker: nobody has to consent again
            raise Failure(ErrorCode.REFRESH_PENDING, "Its import is being installed.", retry_after=1.0)
        named, connection = connection, await consenting_connection(tx, connection)
        if connection is not named:
            wanted = replace(wanted, scopes=None)
            scopes, chains = await self._previous_scopes(tx, connection)
        still_open = await self._open_consent(tx, connection)
        if still_open is not None and is_reusable(still_open, wanted):
            link = await tx.consents.connect_link(still_open)
            return ConnectionWithLink(named, False, still_open, self._connect_url(link.reveal()))
        if connection.state is LifecycleState.PENDING_CONSENT and connection.consent_deadline <= self._now:
            raise Failure(
                ErrorCode.CONSENT_EXPIRED, "Its consent is being closed; try again.", retry_after=5.0
            )
        consent, url = await self.request_consent(tx, connection, scopes, wanted.return_to, chains)
        await self.record(tx, AuditAction.REAUTHORIZATION_REQUESTED, connection.id, consent_id=consent.id)
        return ConnectionWithLink(named, False, consent, url)

    async def _previous_scopes(
        self, tx: Transaction, connection: Connection
    ) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
        integration = await tx.integrations.get(connection.tenant, connection.integration_id)
        if integration is None:
            raise Failure(ErrorCode.NOT_FOUND)
        subject = connection.subject
        scopes = await self.permitted_scopes(tx, integration, subject, connection.requested_scopes)
        return scopes, await self.permitted_slot_scopes(tx, integration, subject, connection, None)

    async def _open_consent(self, tx: Transaction, connection: Connection) -> Consent | None:
        if connection.flow is not Flow.DEVICE_CODE:
            return await tx.consents.open_consent(connection.tenant, connection.id, self._now)
        waiting = await tx.consents.received_consent(connection.tenant, connection.id)
        return waiting if waiting is not None and waiting.expires_at > self._now else None

    async def _retry_client_grant(
        self, tx: Transaction, connection: Connection, scopes: tuple[str, ...], wanted: ConnectionRequest
    ) -> ConnectionWithLink:
        """Who asks by name has a failed one tried again; a lease that is polled for has not."""
        if await tx.consents.received_consent(connection.tenant, connection.id) is None:
            if wanted.for_lease:
                raise Failure(connection.reason or ErrorCode.REFRESH_PENDING, connection_id=connection.id)
            consent = await request_client_grant(tx, connection, scopes, self.request_context, self._now)
            await self.record(tx, AuditAction.REAUTHORIZATION_REQUESTED, connection.id, consent_id=consent.id)
        elif wanted.for_lease:
            code = connection.reason or ErrorCode.REFRESH_PENDING
            raise Failure(code, retry_after=_CLIENT_GRANT_RETRY_S, connection_id=connection.id)
        return ConnectionWithLink(connection, False)

    async def _create(
        self,
        tx: Transaction,
        integration: Integration,
        wanted: ConnectionRequest,
        scopes: tuple[str, ...],
        chains: Mapping[str, tuple[str, ...]],
        flow: Flow,
    ) -> Connection:
        nobody = flow.is_client_grant or flow.is_static
        deadline = self._now + (CLIENT_GRANT_DEADLINE if nobody else self._parts.settings.consent_ttl)
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
            slot_scopes=dict(chains),
            created_at=self._now,
            changed_at=self._now,
            consent_deadline=deadline,
        )
        await tx.connections.add_new(connection)
        await tx.outbox.add(
            connection_start_message(connection, self._parts.ring, self.request_context, self._now)
        )
        await self.record(
            tx,
            AuditAction.CONNECTION_CREATED,
            connection.id,
            integration=integration.name,
            label=wanted.label,
            scopes=list(scopes),
            flow=flow,
        )
        return connection

    def _check_return_to(self, url: str | None) -> None:
        """Compared character by character: no pattern, no prefix (RFC 9700 section 4.11)."""
        if url is not None and url not in self._caller.app.return_to:
            raise Failure(ErrorCode.INVALID_REQUEST, "return_to is not in the app's list.", field="return_to")

    def _connect_url(self, link: str) -> str:
        return f"{self._parts.settings.public_url}/connect/{link}"


async def request_client_grant(
    tx: Transaction,
    connection: Connection,
    scopes: tuple[str, ...],
    asked: RequestContext,
    now: datetime,
    brought: ImportedTokens | None = None,
) -> Consent:
    """Have a worker make the first tokens: a consent that nobody has to give, and no link leads to.

    `brought`: what they are made from, or what is installed as it is.
    """
    kind = ConsentKind.IMPORT if connection.flow.is_static else ConsentKind.CLIENT_GRANT
    consent = Consent.without_subject(
        connection, kind, scopes, asked, at=now, expires_at=now + CLIENT_GRANT_DEADLINE
    )
    if brought is None:
        await tx.consents.add(consent, None)
    else:
        await tx.consents.add_import(consent, brought)
    await _signal_consent_granted(tx, connection, consent, asked, now)
    return consent


async def _signal_consent_granted(
    tx: Transaction, connection: Connection, consent: Consent, asked: RequestContext, now: datetime
) -> None:
    """The workflow goes on with a consent that no browser brings anything for."""
    granted = ConsentGranted(consent_id=consent.id, context=asked)
    await tx.outbox.add(connection_signal_message(connection, SignalName.CONSENT_GRANTED, granted, now))


def default_flow(spec: ProviderSpec) -> Flow:
    """What a connection does when nobody says: the first of the definition's flows that works here."""
    needs_more = (Flow.TOKEN_EXCHANGE, Flow.API_KEY, Flow.BASIC)  # than names
    known = [Flow(mode) for mode in spec.auth_modes if mode in set(Flow)]
    known.sort(key=lambda it: it is Flow.IMPLICIT)  # never before another one
    return next((it for it in known if it not in needs_more), Flow.AUTHORIZATION_CODE)


def require_ready(integration: Integration) -> None:
    """Raise Failure DISCOVERY_FAILED unless the integration's endpoints are known."""
    if integration.state is IntegrationState.FAILED:
        raise Failure(ErrorCode.DISCOVERY_FAILED, integration.problem or "", integration=integration.name)
    if integration.state is IntegrationState.DISCOVERING:
        raise Failure(
            ErrorCode.DISCOVERY_FAILED,
            "The issuer's metadata has not been read yet.",
            retry_after=5.0,
            integration=integration.name,
        )


def raise_scope_not_permitted(scopes: Iterable[str]) -> None:
    raise Failure(
        ErrorCode.SCOPE_NOT_PERMITTED,
        "A scope is above the ceiling of the permit or the integration.",
        scopes=" ".join(scopes),
    )
