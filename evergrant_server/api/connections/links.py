"""Connect links of a live connection: which app may request one, what it asks for, which is given again.

Apps with `connect` share a connection: each of them may lease it, and revoke it. Whose account it is stays
with the app whose consent brought the first grant (ADR 0072): that app alone, or an admin, has its account
chosen or its subject consent again.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from evergrant_server import audit
from evergrant_server.api.connections.models import ConnectionBody
from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target
from evergrant_server.store import Transaction

_ENDS_WITHIN = timedelta(seconds=10)


async def require_maker(tx: Transaction, call: ApiCall, connection: Connection) -> bool:
    """Check that the caller made the connection or is its admin; returns whether it is an admin.

    Raises Failure MADE_BY_ANOTHER_APP, which says whose turn it is.
    """
    if call.allows(Action.ADMIN, Target.of(connection)):
        return True
    maker = await tx.consents.maker_of(connection)
    if maker is not None and maker == call.caller.app.id:
        return False
    app = None if maker is None else await tx.access.app(connection.tenant, maker)
    about = {"connection_id": connection.id, "state": connection.state.value}
    if app is None or app.disabled:
        why = "An admin, or an app that is gone, made this connection."
        repair = "Have an admin reauthorize the connection, or use another label."
        raise Failure(ErrorCode.MADE_BY_ANOTHER_APP, why, repair=repair, **about)
    why = f"The app {app.name} made this connection, and an app has only its own authorized again."
    repair = (
        f"Connect the subject in {app.name}, have an admin reauthorize the connection, or use another label."
    )
    raise Failure(ErrorCode.MADE_BY_ANOTHER_APP, why, repair=repair, **about)


async def require_consent_allowed(
    tx: Transaction, call: ApiCall, connection: Connection, slots: Iterable[str] = ()
) -> bool:
    """Check that a consent that the caller requests replaces no grant of another app's; returns whether the
    caller is an admin. Raises Failure MADE_BY_ANOTHER_APP.

    A connection without a grant has no account yet: each app that may connect it has a link of its own, and
    the first that is finished counts. `slots` are further token slots, whose connections the consent fills.
    """
    for slot in slots:
        label = connection.label_of_slot(slot)
        names = connection.tenant, connection.integration, connection.subject, label
        filled = await tx.connections.by_names(*names)
        if filled is None or filled.state.is_final or not filled.generation:
            continue
        if filled.consented_with != connection.id:
            await require_maker(tx, call, filled)
    if connection.generation:
        return await require_maker(tx, call, connection)
    return call.allows(Action.ADMIN, Target.of(connection))


def scopes_to_ask_for(
    live: Connection, requested: tuple[str, ...] | None, defaults: tuple[str, ...], *, for_lease: bool
) -> tuple[str, ...]:
    """The scopes of the next link; `defaults` are the integration's.

    Those of a connection without a grant are replaced: they may be what the provider refuses. To those of a
    grant a lease adds its own, because other apps use the grant too.
    """
    kept = defaults if _follows_defaults(live) else live.requested_scopes
    if requested is None:
        return kept
    if not for_lease:
        return requested
    if live.state is LifecycleState.PENDING_CONSENT:
        return kept if set(requested) <= set(kept) else requested
    return (*kept, *requested)


def _follows_defaults(connection: Connection) -> bool:
    return connection.state is LifecycleState.PENDING_CONSENT and connection.default_scopes


async def offer_link(
    tx: Transaction,
    call: ApiCall,
    connection: Connection,
    scopes: tuple[str, ...],
    slots: Mapping[str, tuple[str, ...]],
    defaults: tuple[str, ...],
) -> Connection:
    """Write what the new link of a pending connection asks for, and have the connection wait as long as
    the link works.

    The workflow hears of the later deadline when the one that it knows has passed.
    """
    if connection.state is not LifecycleState.PENDING_CONSENT:
        return connection
    return await tx.connections.offer(
        connection.__replace__(
            consent_deadline=max(connection.consent_deadline, call.now + call.api.settings.consent_ttl),
            requested_scopes=scopes,
            default_scopes=connection.default_scopes and set(scopes) == set(defaults),
            slot_scopes=dict(slots),
        ),
        expected=connection.revision,
    )


async def require_consent_helps(
    tx: Transaction, connection: Connection, now: datetime, *, for_lease: bool
) -> None:
    """Raise Failure REFRESH_PENDING while a worker installs what the subject has granted, or ends a
    connection that the subject has declined: a new link would be of no use."""
    why = None
    received = await tx.consents.received_consent(connection.tenant, connection.id)
    if received is not None and received.kind is ConsentKind.IMPORT and not received.came_from_browser:
        why = "A worker is installing its import."
    elif received is not None and received.came_from_browser and for_lease:
        why = "A worker is exchanging the code of its consent."
    elif connection.state is LifecycleState.PENDING_CONSENT:
        declined = await audit.newest_record(tx, connection.tenant, connection.id, AuditAction.CONSENT_DENIED)
        if declined is not None and now - declined.at < _ENDS_WITHIN:
            why = "Its subject has just declined, and a worker ends it."
    if why is not None:
        raise Failure(ErrorCode.REFRESH_PENDING, why, retry_after=1.0, connection_id=connection.id)


async def open_consent(
    tx: Transaction, call: ApiCall, connection: Connection, challenge: str | None
) -> Consent | None:
    """The unexpired consent that the connection waits for, if this app requested it with this challenge.

    A device code is shared by all apps.
    """
    tenant, id, now = connection.tenant, connection.id, call.now
    if connection.flow is not Flow.DEVICE_CODE:
        mine = {"app_id": call.caller.app.id, "challenge": challenge}
        return await tx.consents.open_consent(tenant, id, now, **mine)
    waiting = await tx.consents.received_consent(tenant, id)
    return waiting if waiting is not None and waiting.expires_at > now else None


def is_reusable(
    consent: Consent,
    connection: Connection,
    scopes: tuple[str, ...],
    wanted: ConnectionBody,
    call: ApiCall,
    *,
    for_lease: bool,
) -> bool:
    """Whether an open link can be returned again.

    Not one that a browser has opened, which works in that browser only; nor one that has less than half of
    its time left, or asks for other scopes. A lease takes one that asks for more than it needs.
    """
    narrower = for_lease or connection.state is not LifecycleState.PENDING_CONSENT
    if wanted.scopes is None:
        same = not _follows_defaults(connection) or set(scopes) == set(consent.scopes)
    else:
        same = set(wanted.scopes) <= set(consent.scopes) if narrower else set(scopes) == set(consent.scopes)
    if consent.kind is ConsentKind.DEVICE:
        return same
    half = call.api.settings.consent_ttl / 2
    if not same or consent.status is not ConsentStatus.OPEN or consent.expires_at - call.now < half:
        return False
    if for_lease:
        return True
    if wanted.slot_scopes is not None and wanted.slot_scopes != consent.slot_scopes:
        return False
    return consent.return_to == wanted.return_to
