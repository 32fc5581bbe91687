"""Connections and consents as they begin: rows, outbox and audit in the transaction of the caller."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from evergrant_server import audit
from evergrant_server.api.asking_again import (
    Opened,
    Wanted,
    asked_for,
    being_imported,
    consented_to,
    fits,
    for_account,
    require_as_begun,
    unrevoked,
)
from evergrant_server.api.authentication import Caller
from evergrant_server.api.definitions import spec_of
from evergrant_server.api.implicit import require_allowed
from evergrant_server.api.outgoing import signal, start
from evergrant_server.api.parts import Parts
from evergrant_server.core.access import Action, Integration, IntegrationState
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.consent import LINK_BYTES, Consent, ConsentKind, ConsentStatus, hash_of_link
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import ConnectionId, ConsentId, new_id
from evergrant_server.core.imports import ImportedTokens
from evergrant_server.core.messages import SIGNAL_CONSENT_GRANTED, Asked, ConsentGranted
from evergrant_server.core.secret import Secret
from evergrant_server.policy import Reason, above, decide
from evergrant_server.store import Tx
from providers.authorization import chains_to_request
from providers.proofs import bound
from providers.spec import ProviderSpec

MINT_WITHIN = timedelta(days=7)  # an admin's time to repair what keeps the first token from being made
_MINTED_SOON_S = 1.0


class Establishing:
    """Creates connections and consents for one caller, in the caller's transaction."""

    def __init__(self, parts: Parts, caller: Caller, asked: Asked) -> None:
        self._parts = parts
        self._caller = caller
        self.asked = asked
        self._now = parts.clock.now()

    async def connect(self, tx: Tx, wanted: Wanted) -> Opened:
        """The live connection of these names with its link, or a new one.

        Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED, DISCOVERY_FAILED,
        INVALID_REQUEST for a `return_to` that isn't the app's, CONSENT_EXPIRED while an
        unanswered consent is being closed.
        """
        integration = await self.integration(tx, wanted.integration, wanted.subject)
        self._check_return_to(wanted.return_to)
        found = await tx.connections.by_names(
            self._caller.tenant, wanted.integration, wanted.subject, wanted.label
        )
        live = found is not None and not found.state.final
        if found is not None and live:
            require_as_begun(found, wanted)
        flow = await self._flow(tx, integration, found if live else None, wanted.flow)
        if wanted.chain_scopes and flow is not Flow.AUTHORIZATION_CODE:
            detail = "Only an authorization code brings further chains."
            raise Failure(Code.INVALID_REQUEST, detail, field="chain_scopes")
        before = found.requested_scopes if found is not None and live else ()
        scopes = await self.scopes(tx, integration, wanted.subject, asked_for(wanted, before))
        chains = await self.chains(
            tx, integration, wanted.subject, found if live else None, wanted.chain_scopes
        )
        if found is not None and live:
            if wanted.choice not in (None, found.choice):
                found = await for_account(tx, found, wanted.choice)
            return await self._with_link(tx, found, scopes, chains, wanted)
        brought = wanted.brought(await spec_of(tx, self._parts.registry, integration), flow)
        connection = await self._add(tx, integration, wanted, scopes, chains, flow)
        if flow.mints or flow.static:
            await mint(tx, connection, scopes, self.asked, self._now, brought)
            return Opened(connection, True)
        consent, url = await self.ask(tx, connection, scopes, wanted.return_to, chains)
        return Opened(connection, True, consent, url)

    async def integration(self, tx: Tx, name: str, subject: str) -> Integration:
        """The integration, when this app may connect this subject there and it is ready."""
        verdict = decide(self._caller.permits, integration=name, subject=subject, action=Action.CONNECT)
        found = await tx.integrations.by_name(self._caller.tenant, name)
        if found is None or verdict.reason is Reason.NO_PERMIT:
            raise Failure(Code.NOT_FOUND)
        if not verdict.allowed:
            raise Failure(Code.NOT_PERMITTED, "That needs the action connect.")
        require_ready(found)
        await tx.integrations.hold(found)
        return found

    async def scopes(
        self, tx: Tx, integration: Integration, subject: str, asked: tuple[str, ...] | None
    ) -> tuple[str, ...]:
        """What to ask for. Raises Failure SCOPE_NOT_PERMITTED above a ceiling."""
        spec = await spec_of(tx, self._parts.registry, integration)
        scopes = tuple(dict.fromkeys(asked or integration.default_scopes or spec.default_scopes))
        counted = tuple(scope for scope in scopes if scope != spec.offline_scope)
        verdict = decide(
            self._caller.permits,
            integration=integration.name,
            subject=subject,
            action=Action.CONNECT,
            scopes=counted,
        )
        if not verdict.allowed or above(counted, integration.scope_ceiling):
            refuse_scopes(above(counted, verdict.ceiling, integration.scope_ceiling))
        return scopes

    async def chains(
        self,
        tx: Tx,
        integration: Integration,
        subject: str,
        there: Connection | None,
        asked: Mapping[str, tuple[str, ...]] | None,
    ) -> dict[str, tuple[str, ...]]:
        """What to ask for further chains: what is asked now, else as before, but for those that were
        revoked and those above a ceiling. Raises Failure SCOPE_NOT_PERMITTED, INVALID_REQUEST."""
        if asked is not None:
            chains_to_request(await spec_of(tx, self._parts.registry, integration), asked)
            return {name: await self.scopes(tx, integration, subject, its) for name, its in asked.items()}
        chains: dict[str, tuple[str, ...]] = {}
        for name, its in (await unrevoked(tx, there) if there is not None else {}).items():
            try:
                chains[name] = await self.scopes(tx, integration, subject, its)
            except Failure as failure:
                if failure.code is not Code.SCOPE_NOT_PERMITTED:
                    raise  # for another app to ask: that chain stays as it is
        return chains

    async def _flow(
        self, tx: Tx, integration: Integration, there: Connection | None, asked: Flow | None
    ) -> Flow:
        """How the connection comes by its tokens. Raises Failure INVALID_REQUEST."""
        if there is not None:
            return there.flow
        spec = await spec_of(tx, self._parts.registry, integration)
        flow = asked or first_flow(spec)
        bound(spec, integration, None).require_usable(flow)
        return flow

    async def ask(
        self,
        tx: Tx,
        connection: Connection,
        scopes: tuple[str, ...],
        return_to: str | None,
        chains: Mapping[str, tuple[str, ...]],
    ) -> tuple[Consent, str]:
        """A new consent and its connect link."""
        self._check_return_to(return_to)
        require_allowed(connection.flow, self._parts)
        link = secrets.token_urlsafe(LINK_BYTES)
        waits = connection.state is State.PENDING_CONSENT
        device = connection.flow is Flow.DEVICE_CODE  # a worker gets a code, and asks about it
        consent = Consent(
            tenant=connection.tenant,
            id=ConsentId(new_id("cns")),
            connection_id=connection.id,
            integration_id=connection.integration_id,
            kind=ConsentKind.DEVICE if device else ConsentKind.CODE,
            status=ConsentStatus.CODE_RECEIVED if device else ConsentStatus.OPEN,
            scopes=scopes,
            chain_scopes=dict(chains),
            return_to=return_to,
            link_hash=hash_of_link(link),
            created_at=self._now,
            # a pending connection ends at its deadline, and its links with it
            expires_at=connection.consent_deadline if waits else self._now + self._parts.settings.consent_ttl,
            by=self.asked.by,
            trace_id=self.asked.trace_id,
        )
        await tx.consents.add(consent, Secret(link))
        if device:
            await _begun(tx, connection, consent, self.asked, self._now)
        return consent, self._url(link)

    async def record(self, tx: Tx, action: AuditAction, what: str, **detail: object) -> None:
        entry = AuditEntry(
            tenant=self._caller.tenant,
            at=self._now,
            action=action,
            object=what,
            asked=self.asked,
            detail=detail,
        )
        await audit.append(tx, entry)

    async def _with_link(
        self,
        tx: Tx,
        connection: Connection,
        scopes: tuple[str, ...],
        chains: Mapping[str, tuple[str, ...]],
        wanted: Wanted,
    ) -> Opened:
        if connection.state not in (State.PENDING_CONSENT, State.NEEDS_REAUTH):
            return Opened(connection, False)
        if connection.flow.static:
            return Opened(connection, False)
        if connection.flow.mints:
            return await self._minted_again(tx, connection, scopes, wanted)
        require_allowed(connection.flow, self._parts)
        if await being_imported(tx, connection):
            # its grant is on its way to a worker: nobody has to consent again
            raise Failure(Code.REFRESH_PENDING, "Its import is being installed.", retry_after=1.0)
        named, connection = connection, await consented_to(tx, connection)
        if connection is not named:
            wanted = replace(wanted, scopes=None)
            scopes, chains = await self._as_before(tx, connection)
        still_open = await self._still_open(tx, connection)
        if still_open is not None and fits(still_open, wanted):
            link = await tx.consents.link(still_open)
            return Opened(named, False, still_open, self._url(link.reveal()))
        if connection.state is State.PENDING_CONSENT and connection.consent_deadline <= self._now:
            raise Failure(Code.CONSENT_EXPIRED, "Its consent is being closed; try again.", retry_after=5.0)
        consent, url = await self.ask(tx, connection, scopes, wanted.return_to, chains)
        await self.record(tx, AuditAction.REAUTHORIZE_ASKED, connection.id, consent_id=consent.id)
        return Opened(named, False, consent, url)

    async def _as_before(
        self, tx: Tx, connection: Connection
    ) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
        integration = await tx.integrations.get(connection.tenant, connection.integration_id)
        if integration is None:
            raise Failure(Code.NOT_FOUND)
        subject = connection.subject
        scopes = await self.scopes(tx, integration, subject, connection.requested_scopes)
        return scopes, await self.chains(tx, integration, subject, connection, None)

    async def _still_open(self, tx: Tx, connection: Connection) -> Consent | None:
        if connection.flow is not Flow.DEVICE_CODE:
            return await tx.consents.open_for(connection.tenant, connection.id, self._now)
        waiting = await tx.consents.received_for(connection.tenant, connection.id)
        return waiting if waiting is not None and waiting.expires_at > self._now else None

    async def _minted_again(
        self, tx: Tx, connection: Connection, scopes: tuple[str, ...], wanted: Wanted
    ) -> Opened:
        """Who asks by name has a failed one tried again; a lease that is polled for has not."""
        if await tx.consents.received_for(connection.tenant, connection.id) is None:
            if wanted.leasing:
                raise Failure(connection.reason or Code.REFRESH_PENDING, connection_id=connection.id)
            consent = await mint(tx, connection, scopes, self.asked, self._now)
            await self.record(tx, AuditAction.REAUTHORIZE_ASKED, connection.id, consent_id=consent.id)
        elif wanted.leasing:
            code = connection.reason or Code.REFRESH_PENDING
            raise Failure(code, retry_after=_MINTED_SOON_S, connection_id=connection.id)
        return Opened(connection, False)

    async def _add(
        self,
        tx: Tx,
        integration: Integration,
        wanted: Wanted,
        scopes: tuple[str, ...],
        chains: Mapping[str, tuple[str, ...]],
        flow: Flow,
    ) -> Connection:
        nobody = flow.mints or flow.static
        deadline = self._now + (MINT_WITHIN if nobody else self._parts.settings.consent_ttl)
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
            chain_scopes=dict(chains),
            created_at=self._now,
            changed_at=self._now,
            consent_deadline=deadline,
        )
        await tx.connections.begin(connection)
        await tx.outbox.add(start(connection, self._parts.ring, self.asked, self._now))
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
            raise Failure(Code.INVALID_REQUEST, "return_to is not in the app's list.", field="return_to")

    def _url(self, link: str) -> str:
        return f"{self._parts.settings.public_url}/connect/{link}"


async def mint(
    tx: Tx,
    connection: Connection,
    scopes: tuple[str, ...],
    asked: Asked,
    now: datetime,
    brought: ImportedTokens | None = None,
) -> Consent:
    """Have a worker make the first tokens: a consent that nobody has to give, and no link leads to.

    `brought`: what they are made from, or what is installed as it is.
    """
    kind = ConsentKind.IMPORT if connection.flow.static else ConsentKind.MINT
    consent = Consent.unasked(connection, kind, scopes, asked, at=now, expires_at=now + MINT_WITHIN)
    if brought is None:
        await tx.consents.add(consent, None)
    else:
        await tx.consents.add_import(consent, brought)
    await _begun(tx, connection, consent, asked, now)
    return consent


async def _begun(tx: Tx, connection: Connection, consent: Consent, asked: Asked, now: datetime) -> None:
    """The workflow goes on with a consent that no browser brings anything for."""
    granted = ConsentGranted(attempt_id=consent.id, asked=asked)
    await tx.outbox.add(signal(connection, SIGNAL_CONSENT_GRANTED, granted, now))


def first_flow(spec: ProviderSpec) -> Flow:
    """What a connection does when nobody says: the first of the definition's flows that works here."""
    needs_more = (Flow.TOKEN_EXCHANGE, Flow.API_KEY, Flow.BASIC)  # than names
    known = [Flow(mode) for mode in spec.auth_modes if mode in set(Flow)]
    known.sort(key=lambda it: it is Flow.IMPLICIT)  # never before another one
    return next((it for it in known if it not in needs_more), Flow.AUTHORIZATION_CODE)


def require_ready(integration: Integration) -> None:
    """Raise Failure DISCOVERY_FAILED unless the integration's endpoints are known."""
    if integration.state is IntegrationState.FAILED:
        raise Failure(Code.DISCOVERY_FAILED, integration.problem or "", integration=integration.name)
    if integration.state is IntegrationState.DISCOVERING:
        raise Failure(
            Code.DISCOVERY_FAILED,
            "The issuer's metadata has not been read yet.",
            retry_after=5.0,
            integration=integration.name,
        )


def refuse_scopes(scopes: Iterable[str]) -> None:
    raise Failure(
        Code.SCOPE_NOT_PERMITTED,
        "A scope is above the ceiling of the permit or the integration.",
        scopes=" ".join(scopes),
    )
