"""Creates connections, or finds the live one of the same names, in the caller's transaction."""

from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from evergrant_server.access.context import integration_spec
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.refusals import OfferedConsent, WantedConsent
from evergrant_server.api.connections.consents import (
    CLIENT_GRANT_DEADLINE,
    ConnectionWithLink,
    connect_url,
    consenting_connection,
    request_client_grant,
    request_consent,
    require_return_to,
)
from evergrant_server.api.connections.flows import (
    expected_account,
    require_flow_allowed,
    require_identity,
    require_same_expectation,
    supplied_tokens,
    usable_flow,
)
from evergrant_server.api.connections.links import (
    is_reusable,
    offer_link,
    open_consent,
    require_consent_allowed,
    require_consent_helps,
    require_maker,
    scopes_to_ask_for,
)
from evergrant_server.api.connections.models import ConnectionBody
from evergrant_server.api.connections.scopes import ScopeCheck
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.http.models import Scopes
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.lifecycle.snapshot import start_message
from evergrant_server.crypto import KeyPurpose
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec

_CLIENT_GRANT_RETRY_S = 1.0
_SCOPES: TypeAdapter[tuple[str, ...] | None] = TypeAdapter(Scopes | None)


def new_connection(
    call: ApiCall, integration: Integration, *, scopes: tuple[str, ...], deadline: datetime, **settings: Any
) -> Connection:
    now = call.now
    return Connection(
        tenant=integration.tenant,
        id=ConnectionId(new_id("con")),
        integration_id=integration.id,
        integration=integration.name,
        provider=integration.provider,
        requested_scopes=scopes,
        created_at=now,
        changed_at=now,
        consent_deadline=deadline,
        **{**settings, "target": integration.token_target(settings.get("target", TokenTarget()))},
    )


class ConnectionSetup:
    """Finds or creates connections for one call.

    `for_lease`: of a lease, which takes any open link. `step_up`: the subject has to consent to further
    scopes of an active connection.
    """

    def __init__(self, call: ApiCall, *, for_lease: bool = False, step_up: bool = False) -> None:
        self._call = call
        self._api = call.api
        self._for_lease = for_lease
        self._step_up = step_up
        self._now = call.now

    async def find_or_create(self, tx: Transaction, wanted: ConnectionBody) -> ConnectionWithLink:
        """The live connection of these names with its link, or a new connection.

        Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED, DISCOVERY_FAILED, INVALID_REQUEST for a
        `return_to` outside the app's list, REFRESH_PENDING while a worker installs or ends what a consent has
        brought, MADE_BY_ANOTHER_APP where only that app may ask the subject.
        """
        call, subject = self._call, wanted.subject
        integration = await self._require_integration(tx, wanted.integration, subject)
        require_return_to(call.caller, wanted.return_to)
        live = await self._live(tx, wanted)
        if live is not None:
            integration = await self._client_of(tx, live)
            _require_same_settings(live, wanted)
            require_same_expectation(tx, live, wanted.account)
        spec = await integration_spec(tx, self._api.registry, integration)
        flow = live.flow if live is not None else usable_flow(spec, integration, wanted.flow)
        if wanted.slot_scopes and flow is not Flow.AUTHORIZATION_CODE:
            why = "Only the flow authorization_code fills further token slots."
            raise invalid_request("slot_scopes", why)
        check = ScopeCheck(call, integration, spec, subject, None if live is None else live.id)
        requested = wanted.scopes
        if live is not None:
            requested = scopes_to_ask_for(live, requested, check.defaults, for_lease=self._for_lease)
        scopes = check.permitted(requested)
        slots = await check.permitted_slots(tx, live, wanted.slot_scopes)
        if live is None:
            return await self._create(tx, integration, spec, wanted, scopes, slots, flow)
        if wanted.choice not in (None, live.choice):
            if live.state is not LifecycleState.PENDING_CONSENT:
                why = "A live connection has these names: "
                why += "change its account with POST /v1/connections/{id}/choose."
                raise Failure(ErrorCode.ALREADY_EXISTS, why, field="choice")
            await require_maker(tx, call, live)
            changed = live.__replace__(choice=wanted.choice)
            live = await tx.connections.replace(changed, expected=live.revision)
        return await self._existing_with_link(tx, check, live, scopes, slots, wanted)

    async def _live(self, tx: Transaction, wanted: ConnectionBody) -> Connection | None:
        """The live connection of these names. Raises Failure NOT_PERMITTED, CONNECTION_HELD: its subject
        leaves."""
        tenant, integration, subject = self._call.tenant, wanted.integration, wanted.subject
        named = await tx.connections.by_names(tenant, integration, subject, wanted.label)
        if named is None or named.state.is_final:
            if await tx.leavers.is_leaving(tenant, integration, subject):
                raise Failure(ErrorCode.CONNECTION_HELD)
            return None
        self._call.require_permit(Action.CONNECT, of=Target.of(named))
        if named.held_by is not None:
            raise Failure(ErrorCode.CONNECTION_HELD, connection_id=named.id)
        return named

    async def _client_of(self, tx: Transaction, live: Connection) -> Integration:
        """The integration whose client the connection's subject consents to next; of one that works, and
        whose subject nobody asks, the one that has got its grant."""
        integration = require_found(await tx.integrations.of_next_consent(live))
        works = live.state is LifecycleState.ACTIVE and integration.id != live.integration_id
        if works and not self._step_up and not await self._is_asked(tx, live):
            return require_found(await tx.integrations.of_grant(live))
        return integration

    async def _is_asked(self, tx: Transaction, live: Connection) -> bool:
        """Whether a campaign asks the subject of this connection, which works, and this app may ask it."""
        if self._for_lease or not await tx.campaign_items.is_asked(live.tenant, live.id):
            return False
        if self._call.allows(Action.ADMIN, Target.of(live)):
            return True
        return await tx.consents.maker_of(live) == self._call.caller.app.id

    async def _require_integration(self, tx: Transaction, name: str, subject: str) -> Integration:
        """The integration, locked for use, if the caller may connect the subject there."""
        integration = require_found(await tx.integrations.by_name(self._call.tenant, name))
        target = Target(name, integration.provider, subject)
        self._call.require_permit(Action.CONNECT, of=target, hidden=True)
        require_ready(integration)
        await tx.integrations.lock_for_use(integration)
        return integration

    async def _create(
        self,
        tx: Transaction,
        integration: Integration,
        spec: ProviderSpec,
        wanted: ConnectionBody,
        scopes: tuple[str, ...],
        slots: dict[str, tuple[str, ...]],
        flow: Flow,
    ) -> ConnectionWithLink:
        supplied = supplied_tokens(spec, flow, wanted)
        if flow is Flow.ID_JAG:
            await require_identity(tx, integration, wanted)
        without_subject = flow.is_client_grant or flow.is_static
        connection = new_connection(
            self._call,
            integration,
            subject=wanted.subject,
            label=wanted.label,
            scopes=scopes,
            default_scopes=wanted.scopes is None and not without_subject,
            flow=flow,
            target=integration.target_by_default(wanted.target, flow),
            source=wanted.source,
            source_app=None if wanted.source is None else self._call.caller.app.id,
            choice=wanted.choice,
            expected_account=expected_account(tx, integration, spec, flow, scopes, wanted.account),
            slot_scopes=slots,
            deadline=self._now
            + (CLIENT_GRANT_DEADLINE if without_subject else self._api.settings.consent_ttl),
        )
        await self._add(tx, connection)
        if without_subject:
            await request_client_grant(tx, self._call, connection, scopes, supplied)
            return ConnectionWithLink(connection, True)
        consent, url = await request_consent(tx, self._call, integration, connection, scopes, slots, wanted)
        return ConnectionWithLink(connection, True, consent, url)

    async def _add(self, tx: Transaction, connection: Connection) -> None:
        """Write the connection with the message that starts its workflow, and its audit record."""
        await tx.connections.add_new(connection)
        subject_hash = self._api.ring.subject_hash(connection.tenant, connection.subject)
        await tx.outbox.add(start_message(connection, subject_hash, self._call.context, self._now))
        detail = {
            "integration": connection.integration,
            "label": connection.label,
            "scopes": list(connection.requested_scopes),
            "flow": connection.flow,
        }
        await self._call.record(tx, AuditAction.CONNECTION_CREATED, connection.id, **detail)

    async def _existing_with_link(
        self,
        tx: Transaction,
        check: ScopeCheck,
        named: Connection,
        scopes: tuple[str, ...],
        slots: dict[str, tuple[str, ...]],
        wanted: ConnectionBody,
    ) -> ConnectionWithLink:
        """The live connection, with an open or new link if its subject has to consent."""
        waits = named.state in (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)
        steps_up = self._step_up and named.state is LifecycleState.ACTIVE and not named.flow.is_client_grant
        # a campaign's: only for what it asks for is another client's integration chosen while one works
        asked = named.state is LifecycleState.ACTIVE and check.integration.id != named.integration_id
        if not (waits or steps_up or asked) or named.flow.is_static:
            return ConnectionWithLink(named, False)
        if named.flow.is_client_grant:
            return await self._retry_client_grant(tx, named, scopes)
        require_flow_allowed(named.flow, self._api)
        connection = await consenting_connection(tx, named)
        await require_consent_allowed(tx, self._call, connection)
        await require_consent_helps(tx, connection, self._now, for_lease=self._for_lease)
        if connection is not named:
            wanted = wanted.__replace__(scopes=None)
            scopes = check.permitted(scopes_to_ask_for(connection, None, check.defaults, for_lease=False))
            slots = await check.permitted_slots(tx, connection, None)
        existing = await open_consent(tx, self._call, connection, wanted.challenge)
        if (
            existing is not None
            and existing.integration_id == check.integration.id
            and (self._api.ring.holds(KeyPurpose.INTAKE) or tx.consents.has_derived_link(existing))
            and is_reusable(existing, connection, scopes, wanted, self._call, for_lease=self._for_lease)
        ):
            link = await tx.consents.connect_link(existing)
            return ConnectionWithLink(named, False, existing, connect_url(self._api, link.reveal()))
        offered = await offer_link(tx, self._call, connection, scopes, slots, check.defaults)
        consent, url = await request_consent(
            tx, self._call, check.integration, offered, scopes, slots, wanted
        )
        await self._record_request(tx, offered, consent.id)
        return ConnectionWithLink(offered if connection is named else named, False, consent, url)

    async def _retry_client_grant(
        self, tx: Transaction, connection: Connection, scopes: tuple[str, ...]
    ) -> ConnectionWithLink:
        """Retry a failed client grant for `POST /v1/connections`, but not for a lease, which apps poll."""
        code = connection.reason or ErrorCode.REFRESH_PENDING
        requested = await tx.consents.received_consent(connection.tenant, connection.id) is not None
        if self._for_lease:
            retry_after = _CLIENT_GRANT_RETRY_S if requested else None
            raise Failure(code, retry_after=retry_after, connection_id=connection.id)
        if not requested:
            consent = await request_client_grant(tx, self._call, connection, scopes)
            await self._record_request(tx, connection, consent.id)
        return ConnectionWithLink(connection, False)

    async def _record_request(self, tx: Transaction, connection: Connection, consent_id: str) -> None:
        action = AuditAction.REAUTHORIZATION_REQUESTED
        await self._call.record(tx, action, connection.id, consent_id=consent_id)


async def offer_consent(judged: JudgedRequest, wanted: WantedConsent) -> OfferedConsent:
    """The live connection of these names, or a new one, with a link where its subject has to consent.

    Raises Failure as `ConnectionSetup.find_or_create`, ValueError for scopes that can't be asked for.
    """
    call = ApiCall(judged.api, judged.caller, judged.context, judged.request, observed=judged.observed)
    setup = ConnectionSetup(call, for_lease=True, step_up=wanted.step_up)
    scopes, challenge = _SCOPES.validate_python(wanted.scopes), wanted.challenge
    # a lease's names were checked with its body, a row's when it was created
    body = ConnectionBody.model_construct(**wanted.names._asdict(), scopes=scopes, challenge=challenge)
    linked = await judged.write(lambda tx: setup.find_or_create(tx, body))
    expires_at = None if linked.consent is None else linked.consent.expires_at
    return OfferedConsent(linked.connection, linked.connect_url, expires_at)


def _require_same_settings(connection: Connection, wanted: ConnectionBody) -> None:
    """Raise Failure ALREADY_EXISTS if the request differs in a setting that a connection keeps for good.

    Otherwise the app would get tokens of another flow, resource or source than it requested.
    """
    target = wanted.target
    context = {
        "flow": (wanted.flow, connection.flow),
        "source": (wanted.source, connection.source),
        "resources": (set(target.resources) or None, set(connection.target.resources)),
        "audience": (target.audience, connection.target.audience),
        "subject_token_type": (target.subject_token_type, connection.target.subject_token_type),
    }
    for name, (now, begun) in context.items():
        if now is not None and now != begun:
            why = f"the live connection of these names, {connection.id}, has another value of {name}"
            detail = f"{why}: use another label, or revoke it first"
            raise Failure(ErrorCode.ALREADY_EXISTS, detail, field=name)
