"""The view of a connection that every route returns, its device code (RFC 8628), and why it fails.

A worker requests device codes, the API shows them (ADR 0008). What a provider said about a connection's last
refusal is for admins, and comes from the audit log.
"""

from contextlib import suppress
from datetime import datetime
from typing import Any

from evergrant_server import audit
from evergrant_server.access.judgement import without_offline
from evergrant_server.access.transactions import poll_until
from evergrant_server.api.connections.consents import ConnectionWithLink
from evergrant_server.api.connections.models import (
    ConnectionView,
    DeviceView,
    FailedConsentView,
    ProviderSaidView,
    RevocationProgressView,
)
from evergrant_server.api.http.call import ApiCall, CommandResponse
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus, reference_of
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import FollowUp, Grant
from evergrant_server.core.connections.token_state import TokenState, token_state
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, ConsentId
from evergrant_server.core.provider_words import PROVIDER_SAID
from evergrant_server.policy import Target
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import unless_broken
from providers.definition.registry import Registry

DESCRIBE_TIMEOUT_S = 1.0  # how long a read waits for the workflow's description
_MAX_WAIT_S = 5.0
_AWAITING_CONSENT = (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)
_REFUSALS = (
    AuditAction.REFRESH_FAILED,
    AuditAction.NEEDS_REAUTH,
    AuditAction.CONSENT_FAILED,
    AuditAction.CONSENT_DENIED,
    AuditAction.CALLBACK_REFUSED,
    AuditAction.REVOCATION_FAILED,
)
_ENDED_BY = (AuditAction.GRANT_INSTALLED, AuditAction.GRANT_REFRESHED, AuditAction.REVOKED)


async def connection_view(
    tx: Transaction, connection: Connection, linked: ConnectionWithLink | None = None
) -> ConnectionView:
    """The connection with its grant, the progress of its revocation, and its connect link if there is one."""
    grant = await tx.grants.get(connection.tenant, connection.id)
    current = grant if grant and not connection.state.is_final else None
    chooses = connection.state is LifecycleState.ACTIVE and connection.follow_up is FollowUp.CHOOSING
    reason = connection.reason or (ErrorCode.CHOICE_REQUIRED if chooses else None)
    if connection.held_by is not None and not connection.has_ended:
        reason = ErrorCode.CONNECTION_HELD
    failed = refused = None
    if connection.state in _AWAITING_CONSENT and reason is not ErrorCode.CONNECTION_HELD:
        failed = failed_consent(await newest_consent(tx, connection))
        refused = await tx.consents.refused_by(connection) if failed else None
    why = refused or reason or connection.last_failure
    revoking = connection.state is LifecycleState.REVOKING
    consent = linked.consent if linked is not None else None
    return ConnectionView.of(
        connection,
        resources=connection.target.resources,
        audience=connection.target.audience,
        scopes=current.scopes if current else (),
        expires_at=current.expires_at if current else None,
        token_state=await _token_state(tx, connection, current),
        metadata=current.metadata if current else {},
        choices=current.options if current else (),
        expected_account=tuple(sorted(connection.expected_account or {})),
        reason=reason,
        repairer=FAILURES[why].repairer if why else None,
        failed_consent=failed,
        revoking=await _revocation_progress(tx, connection) if revoking else None,
        connect_url=linked.connect_url if linked is not None else None,
        connect_expires_at=consent.expires_at if consent is not None else None,
    )


async def account_name(tx: Transaction, connection: Connection) -> str | None:
    """The account as its owner knows it: the name that the provider gave at the consent, with the chosen one
    where a grant reaches several; None where neither is known."""
    consent = await tx.consents.newest_granted(connection)
    came = None if consent is None else (await tx.consents.account(consent)).came
    chosen = connection.choice
    if chosen is not None:
        grant = await tx.grants.get(connection.tenant, connection.id)
        options = () if grant is None else grant.options
        chosen = next((option.label for option in options if option.id == chosen), chosen)
    return ", ".join(name for name in (came, chosen) if name) or None


async def asking_app(tx: Transaction, connection: Connection) -> str | None:
    """The app that has its subject consent anew, because a campaign goes on (ADR 0117)."""
    if not await tx.campaign_items.is_asked(connection.tenant, connection.id):
        return None
    maker = await unless_broken(tx.consents.maker_of(connection))
    app = None if maker is None else await tx.access.app(connection.tenant, maker)
    return "An app" if app is None else app.name


async def account_for(tx: Transaction, call: ApiCall, connection: Connection) -> str | None:
    """`account_name` for an app that may lease its token, or that made the connection; None for others."""
    may_know = call.allows(Action.TOKEN, Target.of(connection))
    if not may_know and call.allows(Action.CONNECT, Target.of(connection)):
        may_know = await tx.consents.maker_of(connection) == call.caller.app.id
    return await account_name(tx, connection) if may_know else None


async def _token_state(tx: Transaction, connection: Connection, grant: Grant | None) -> TokenState:
    """What the access token is. Whether it was leased decides about an expired one alone."""
    leased = 0
    if grant is not None and not grant.is_valid(tx.now):
        leased = await tx.grants.leased_generation(connection.tenant, connection.id)
    return token_state(connection, grant, leased, tx.now)


async def _revocation_progress(tx: Transaction, connection: Connection) -> RevocationProgressView:
    """From the audit log, so that it works while Temporal is unavailable."""
    tenant, id = connection.tenant, connection.id
    requested = await audit.newest_record(tx, tenant, id, AuditAction.REVOCATION_REQUESTED)
    failed = await audit.newest_record(tx, tenant, id, AuditAction.REVOCATION_FAILED)
    return RevocationProgressView(
        since=requested.at if requested else None,
        failure=ErrorCode(failed.detail["reason"]) if failed else None,
        failed_at=failed.at if failed else None,
    )


async def device_view(tx: Transaction, connection: Connection) -> DeviceView | None:
    """The code to enter, while the connection waits for its approval."""
    if connection.flow is not Flow.DEVICE_CODE or connection.state.is_final:
        return None
    consent = await tx.consents.received_consent(connection.tenant, connection.id)
    if consent is None or consent.kind is not ConsentKind.DEVICE:
        return None
    device = await tx.consents.device_code(consent)
    return None if device is None else DeviceView.of(device)


async def add_device_code(call: ApiCall, answer: CommandResponse) -> CommandResponse:
    """Add the device code to the response, or omit it if no worker has one within a few seconds.

    The stored response of the Idempotency-Key has no code: keys outlast codes.
    """
    view = ConnectionView.model_validate_json(bytes(answer.body))
    if view.flow is not Flow.DEVICE_CODE or view.state not in _AWAITING_CONSENT:
        return answer

    async def look() -> tuple[DeviceView | None, bool]:
        """The code, and whether the request for it has failed."""
        async with call.api.store.read() as tx:
            connection = await tx.connections.get(call.tenant, ConnectionId(view.id))
            device = None if connection is None else await device_view(tx, connection)
        failed = (
            connection is None
            or connection.state not in _AWAITING_CONSENT
            or connection.reason != view.reason
        )
        return device, failed

    longest = min(_MAX_WAIT_S, call.api.settings.lease_wait.total_seconds())
    device, _ = await poll_until(look, lambda seen: seen[0] is not None or seen[1], longest)
    return CommandResponse.of(view.__replace__(device=device), answer.status_code)


async def add_next_step(call: ApiCall, answer: CommandResponse) -> CommandResponse:
    """Add what the next try of a failing connection decides, and when it comes: its workflow knows.

    The stored response of the Idempotency-Key has neither: the step is soon another one.
    """
    view = ConnectionView.model_validate_json(bytes(answer.body))
    if view.state is not LifecycleState.ACTIVE or not view.failures:
        return answer
    described = None
    with suppress(Failure):  # then the view has what the store knows
        link, id = call.api.link, ConnectionId(view.id)
        described = await link.describe(call.tenant, id, timeout=DESCRIBE_TIMEOUT_S)
    if described is None:
        return answer
    view = view.__replace__(next_action=described.next_step, next_at=described.next_at)
    return CommandResponse.of(view, answer.status_code)


# --- why a connection fails -----------------------------------------------------------


async def provider_said(
    tx: Transaction, call: ApiCall, connection: Connection, consent: Consent | None = None
) -> ProviderSaidView | None:
    """What explains the connection's failure, or that of `consent`.

    None without a failure, and for a caller that is neither admin nor auditor.
    """
    may_know = call.may_audit(Target.of(connection))
    return await newest_refusal(tx, connection, consent) if may_know else None


async def newest_refusal(
    tx: Transaction, connection: Connection, consent: Consent | None = None
) -> ProviderSaidView | None:
    """As `provider_said`, whoever asks."""
    since = await _failing_since(tx, connection) if consent is None else consent.created_at
    if since is None:
        return None
    actions = _REFUSALS if consent is not None else (*_REFUSALS, *_ENDED_BY)
    refusals: list[AuditRecord] = []
    for record in await audit.newest_records(tx, connection.tenant, connection.id, actions, since):
        if record.action in _ENDED_BY:
            break
        if consent is None or _consent_of(record) == consent.id:
            refusals.append(record)
    newest = next(
        (record for record in refusals if PROVIDER_SAID in record.detail), refusals[0] if refusals else None
    )
    return None if newest is None else _provider_said_view(newest)


def _provider_said_view(record: AuditRecord) -> ProviderSaidView:
    detail = record.detail
    words: dict[str, Any] = detail.get(PROVIDER_SAID) or {"description": detail.get("why")}
    reason, consent = detail.get("reason") or detail.get("code"), _consent_of(record)
    return ProviderSaidView(
        at=record.at,
        reason=ErrorCode(reason) if reason in set(ErrorCode) else None,
        reference=reference_of(consent) if consent else None,
        **words,
    )


def _consent_of(record: AuditRecord) -> ConsentId | None:
    """The consent that ended with a refusal; other actions name theirs `consent_id`."""
    return record.detail.get("consent") or record.detail.get("consent_id")


async def newest_consent(tx: Transaction, connection: Connection) -> Consent | None:
    """The newest consent of a connection that goes on."""
    if connection.state.is_final or connection.state is LifecycleState.REVOKING:
        return None
    return await tx.consents.newest(connection.tenant, connection.id)


def failed_consent(consent: Consent | None, error: str | None = None) -> FailedConsentView | None:
    """How a consent ended without a grant, which the provider called `error`; None where it didn't, or is
    open."""
    ended = consent is not None and consent.status in (ConsentStatus.FAILED, ConsentStatus.DENIED)
    return FailedConsentView.of(consent, error) if consent is not None and ended else None


async def failed_consent_in_full(
    tx: Transaction, connection: Connection, consent: Consent | None
) -> FailedConsentView | None:
    """As `failed_consent`, with the repair of what the provider said; its words stay an admin's."""
    failed = failed_consent(consent)
    if failed is None or failed.code is not ErrorCode.CLIENT_REJECTED:
        return failed
    refusal = await newest_refusal(tx, connection, consent)
    return failed_consent(consent, None if refusal is None else refusal.error)


def missing_scopes(registry: Registry, connection: Connection, granted: tuple[str, ...]) -> tuple[str, ...]:
    """The requested scopes that the grant has under no name. `openid` is granted by an id token."""
    names = set(granted)
    for group in registry.scope_aliases(connection.provider):
        names |= group if group & names else frozenset()
    requested = without_offline(registry, connection.provider, connection.requested_scopes)
    return tuple(scope for scope in requested if scope not in names and scope != "openid")


async def _failing_since(tx: Transaction, connection: Connection) -> datetime | None:
    """From when on the audit log may explain a failure. It bounds the search: leases are in the log too."""
    since = [connection.last_failed_at]
    if connection.state is not LifecycleState.ACTIVE:
        since.append(connection.changed_at)
    consent = await tx.consents.newest(connection.tenant, connection.id)
    if consent is not None and consent.status is not ConsentStatus.DONE:
        since.append(consent.created_at)
    return min((moment for moment in since if moment is not None), default=None)
