"""The source's side of a move between cells: what its operator offers, and what the target may then ask.

The target proves itself with a secret that the offer hands it, sealed. It reads the tenant's rows as they are
stored, has refreshes paused, and has the tenant handed over; it never gets a key of this cell (ADR 0139).
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
from datetime import datetime, timedelta

from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.core.access import MovePhase, TenantStanding
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.cells.moves import (
    DELETES,
    ENDED,
    STOPS_REFRESHES,
    UNDOABLE,
    MoveOffer,
    MoveSide,
    MoveState,
    TenantKey,
    TenantMove,
)
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import MoveId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import move_message
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing, Recipient
from evergrant_server.store import Store, Transaction

OFFER_LIFETIME = timedelta(days=7)  # for the whole move
OPERATOR = RequestContext(by="operator")
_SECRET_BYTES = 32
_POLL_S, _LONGEST_S = 0.05, 5.0
_SEE = "See: python -m evergrant_server tenants moves"
_FORGET = "Where it was moved from here before: python -m evergrant_server tenants forget"
_OTHER_FAMILY = (
    "The offer is of an installation whose secrets this one doesn't share. Make this cell's keys with what "
    "keys export-cell writes there: python -m evergrant_server keys create --cell-of FILE"
)
_WHERE = {
    True: "Undo it in the cell that receives it; where that serves the tenant, move it back instead.",
    False: "Forget it in the cell that it has left, once nothing runs for it there (left).",
}
# by whether it is to be undone, the side, whether it can be undone, and whether it has left
_ORDERED = {
    (True, MoveSide.TARGET, True, False): MoveState.UNDOING,
    (False, MoveSide.SOURCE, False, True): MoveState.ERASING,
}
_RUNNING = frozenset({MoveState.OFFERED, MoveState.PAUSED, MoveState.CLOSED})


async def offer(
    store: Store, clock: Clock, tenant: Tenant, source: str, target: str, recipient: Recipient
) -> tuple[TenantMove, str]:
    """Offer the tenant to the cell at `target`; returns the move, and the offer as a JWE to `recipient`.

    A new offer ends the one before, unless that has gone on. Raises Failure NOT_FOUND, TENANT_MOVED,
    ALREADY_EXISTS for what has to end first, KEY_UNAVAILABLE.
    """
    secret, now = secrets.token_urlsafe(_SECRET_BYTES), clock.now()
    move = TenantMove(
        tenant=tenant,
        id=MoveId(new_id("mov")),
        side=MoveSide.SOURCE,
        peer=target,
        state=MoveState.OFFERED,
        created_at=now,
        expires_at=now + OFFER_LIFETIME,
    )
    move = move.__replace__(secret_hash=_secret_hash(store.ring, move, secret))

    async def write(tx: Transaction) -> tuple[TenantKey, ...]:
        standing = await tx.tenants.standing(tenant)
        await tx.tenants.require_enabled(tenant)
        await _require_nothing_under_way(tx, tenant, now)
        await tx.tenants.put(standing, expected=standing.revision)  # of two offers at once, one is repeated
        await tx.tenant_moves.add(move)
        detail = {"to": target, "thumbprint": recipient.thumbprint, "move_id": move.id}
        await record(tx, tenant, AuditAction.MOVE_OFFERED, tenant, OPERATOR, now, **detail)
        return await tx.moved_keys.offered(tenant)

    keys = await run_transaction(store, write)
    offered = MoveOffer(
        move_id=move.id,
        tenant=tenant,
        source=source,
        secret=secret,
        expires_at=move.expires_at,
        cell_check=store.ring.cell_check(),
        keys=keys,
        public=_as_text(store.ring.public_keys()),
        worker_macs=_as_text(store.ring.worker_mac_keys()),
    )
    return move, recipient.seal(Secret(offered.model_dump_json()))


async def receive(store: Store, clock: Clock, offered: MoveOffer, here: str) -> TenantMove:
    """Take the offer: the tenant's keys under this cell's roots, and a job that copies the rest.

    Raises Failure INVALID_REQUEST for an offer of another family of cells, or that is over; ALREADY_EXISTS
    where the tenant is here; KEY_UNAVAILABLE.
    """
    now, tenant = clock.now(), offered.tenant
    if offered.expires_at < now:
        raise Failure(ErrorCode.INVALID_REQUEST, "The offer is over: make another one at its source.")
    if offered.cell_check != store.ring.cell_check():
        raise Failure(ErrorCode.INVALID_REQUEST, _OTHER_FAMILY)
    if here == offered.source:
        raise Failure(ErrorCode.INVALID_REQUEST, "The offer is of this cell: receive it in the other one.")
    move = TenantMove(
        tenant=tenant,
        id=offered.move_id,
        side=MoveSide.TARGET,
        peer=offered.source,
        state=MoveState.COPYING,
        created_at=now,
        expires_at=offered.expires_at,
    )

    async def write(tx: Transaction) -> None:
        await _begin_arriving(tx, move, offered, now)

    await run_transaction(store, write)
    return move


async def _begin_arriving(tx: Transaction, move: TenantMove, offered: MoveOffer, now: datetime) -> None:
    tenant = move.tenant
    before = await tx.tenants.to_change(tenant)
    earlier = await tx.tenant_moves.open_of(tenant)
    if earlier is not None and earlier.state in DELETES:
        why = f"{tenant} is deleted here by the move {earlier.id} ({earlier.state}): wait for its end. {_SEE}"
        raise Failure(ErrorCode.ALREADY_EXISTS, why)
    stays = before is not None and before.phase is not MovePhase.MOVED
    if stays or earlier is not None or not await tx.moved_rows.is_empty(tenant):
        raise Failure(ErrorCode.ALREADY_EXISTS, f"{tenant} has rows in this cell. {_FORGET}")
    reason = f"arriving from {offered.source}"
    standing = before or TenantStanding(tenant=tenant, id=tenant)
    arriving = standing.__replace__(
        phase=MovePhase.ARRIVING, moved_to="", reason=reason, disabled=True, changed_at=now
    )
    access = {
        "secret": offered.secret,
        "public": json.dumps(dict(offered.public)),
        "worker_macs": json.dumps(dict(offered.worker_macs)),
    }
    await tx.tenants.put(arriving, expected=None if before is None else before.revision)
    await tx.moved_keys.take(tenant, offered.keys)
    await tx.tenant_moves.add(move, access)
    await tx.outbox.add(move_message(move, OPERATOR, now))


async def order(store: Store, clock: Clock, tenant: Tenant, *, undo: bool) -> TenantMove:
    """Undo the tenant's move, or have the rows forgotten that it has left behind.

    Raises Failure NOT_FOUND: there is none; STORE_CONFLICT: it is too late, or too early, for that.
    """

    async def write(tx: Transaction) -> TenantMove:
        move = await tx.tenant_moves.open_of(tenant)
        if move is None:
            raise Failure(ErrorCode.NOT_FOUND, f"{tenant} has no move that goes on. {_SEE}")
        if undo and move.side is MoveSide.SOURCE and move.state in (MoveState.OFFERED, MoveState.PAUSED):
            await undo_offer(tx, move, clock.now())
            return move.__replace__(state=MoveState.UNDONE)
        state = _ORDERED.get((undo, move.side, move.state in UNDOABLE, move.state is MoveState.LEFT))
        if state is None:
            raise Failure(ErrorCode.STORE_CONFLICT, f"{tenant}: the move is {move.state}. {_WHERE[undo]}")
        ordered = await tx.tenant_moves.replace(move.__replace__(state=state), expected=move.revision)
        await tx.outbox.add(move_message(ordered, OPERATOR, clock.now()))
        return ordered

    return await run_transaction(store, write)


async def authenticate(
    store: Store, clock: Clock, tenant: Tenant, move_id: MoveId, secret: str, *, ends: bool = False
) -> TenantMove:
    """The source's row of a move that this secret proves, for a step that `ends` it or another one.

    An offer is good for its week unless it was undone; a move that has paused the tenant goes on to its end,
    which may be said at any time: else the tenant would be served nowhere. Raises Failure UNAUTHENTICATED.
    """
    async with store.read() as tx:
        move = await tx.tenant_moves.get(tenant, move_id)
    if move is None or move.side is not MoveSide.SOURCE:
        raise Failure(ErrorCode.UNAUTHENTICATED)
    is_good = move.state not in ENDED and clock.now() <= move.expires_at
    if not (is_good or ends or move.state in STOPS_REFRESHES):
        raise Failure(ErrorCode.UNAUTHENTICATED)
    if not hmac.compare_digest(_secret_hash(store.ring, move, secret), move.secret_hash):
        raise Failure(ErrorCode.UNAUTHENTICATED)
    return move


async def pause(store: Store, clock: Clock, move: TenantMove) -> int:
    """Let no single-use credential of the tenant be spent here any more; returns how many are on their way,
    and orders that go on.

    Leases and revocations go on. Raises Failure STORE_CONFLICT when the move was undone meanwhile, or another
    one has paused the tenant, TENANT_DISABLED.
    """

    async def write(tx: Transaction) -> None:
        current = await _running(tx, move)
        if current.state is not MoveState.OFFERED:
            return
        standing = await _standing(tx, move.tenant, MovePhase.HERE)
        await tx.tenants.require_enabled(move.tenant)  # one that was disabled meanwhile stays so, and here
        await _put_phase(tx, standing, clock.now(), MovePhase.PAUSED)
        paused = current.__replace__(state=MoveState.PAUSED, paused_at=clock.now())
        await tx.tenant_moves.replace(paused, expected=current.revision)

    await run_transaction(store, write)
    if not await _all_have_seen(store):
        return 1
    async with store.read() as tx:
        orders = await tx.moved_rows.orders_under_way(move.tenant)  # they would go on here alone
        return await tx.moved_rows.spending(move.tenant) + len(orders)


async def close(store: Store, clock: Clock, move: TenantMove) -> None:
    """Answer each request of the tenant by 421 from here on; all that was begun before is committed.

    Raises Failure STORE_CONFLICT: it isn't paused, was undone, or another one has changed the tenant's phase;
    REFRESH_PENDING: something is still on.
    """

    async def write(tx: Transaction) -> None:
        current = await _running(tx, move)
        if current.state is MoveState.OFFERED:
            raise Failure(ErrorCode.STORE_CONFLICT, "The move isn't paused.")
        if current.state is MoveState.CLOSED:
            return
        if await tx.moved_rows.orders_under_way(move.tenant):
            raise Failure(ErrorCode.REFRESH_PENDING, "an order of the tenant goes on", retry_after=1.0)
        now, reason = clock.now(), f"moved to {move.peer}"
        standing = await _standing(tx, move.tenant, MovePhase.PAUSED)
        await _put_phase(tx, standing, now, MovePhase.MOVED, moved_to=move.peer, reason=reason)
        await record(tx, move.tenant, AuditAction.TENANT_DISABLED, move.tenant, OPERATOR, now, reason=reason)
        closed = current.__replace__(state=MoveState.CLOSED, closed_at=now)
        await tx.tenant_moves.replace(closed, expected=current.revision)

    await run_transaction(store, write)
    if not await _all_have_seen(store):
        raise Failure(ErrorCode.REFRESH_PENDING, "a transaction of before is still open", retry_after=0.5)


async def resume(store: Store, clock: Clock, move: TenantMove) -> None:
    """The tenant stays here. The target asks for it once its rows are gone there, and can't have it after."""

    async def write(tx: Transaction) -> None:
        current = await tx.tenant_moves.get(move.tenant, move.id)
        if current is None or current.state in ENDED:
            return
        if current.state not in _RUNNING:
            raise Failure(ErrorCode.STORE_CONFLICT, "The tenant lives in the other cell already.")
        await undo_offer(tx, current, clock.now())

    await run_transaction(store, write)


async def undo_offer(tx: Transaction, move: TenantMove, now: datetime) -> None:
    """End a move that the target hasn't been told to activate. One that was only offered has changed no
    phase."""
    if move.state is MoveState.CLOSED:
        reason = f"the move to {move.peer} was undone"
        await record(tx, move.tenant, AuditAction.TENANT_ENABLED, move.tenant, OPERATOR, now, reason=reason)
    if move.state is not MoveState.OFFERED:
        await _put_phase(tx, await tx.tenants.standing(move.tenant), now, MovePhase.HERE)
    undone = move.__replace__(state=MoveState.UNDONE, ended_at=now)
    await tx.tenant_moves.end(undone, expected=move.revision)
    await record(tx, move.tenant, AuditAction.MOVE_UNDONE, move.tenant, OPERATOR, now, to=move.peer)


async def leave(store: Store, clock: Clock, move: TenantMove, root: str, counts: dict[str, int]) -> None:
    """The target serves the tenant: have a worker end its workflows here."""

    async def write(tx: Transaction) -> None:
        current = await tx.tenant_moves.get(move.tenant, move.id)
        if current is None or current.state is not MoveState.CLOSED:
            return
        now = clock.now()
        leaving = current.__replace__(state=MoveState.LEAVING, root=root, counts=counts)
        await tx.tenant_moves.replace(leaving, expected=current.revision)
        detail = {"to": move.peer, "root": root, "rows": sum(counts.values()), "move_id": move.id}
        await record(tx, move.tenant, AuditAction.TENANT_MOVED, move.tenant, OPERATOR, now, **detail)
        await tx.outbox.add(move_message(leaving, OPERATOR, now))

    await run_transaction(store, write)


async def heads_digest(tx: Transaction, tenant: Tenant) -> str:
    """A digest of the ends of the tenant's trees, which the record of its arrival names."""
    ends = await tx.moved_rows.tree_ends(tenant)
    return hashlib.sha256("\n".join(ends).encode()).hexdigest()


async def _running(tx: Transaction, move: TenantMove) -> TenantMove:
    current = await tx.tenant_moves.get(move.tenant, move.id)
    if current is None or current.state not in _RUNNING:
        state = "unknown" if current is None else current.state.value
        raise Failure(ErrorCode.STORE_CONFLICT, f"The move is {state} at its source.", state=state)
    return current


async def _standing(tx: Transaction, tenant: Tenant, phase: MovePhase) -> TenantStanding:
    """The standing, which is in this phase. Raises Failure STORE_CONFLICT, AUTHORITY_BROKEN."""
    standing = await tx.tenants.standing(tenant)
    if standing.phase is not phase:
        why = f"Another move has changed where {tenant} stands ({standing.phase or 'here'})."
        raise Failure(ErrorCode.STORE_CONFLICT, why)
    return standing


async def _put_phase(
    tx: Transaction,
    before: TenantStanding,
    now: datetime,
    phase: MovePhase,
    moved_to: str = "",
    reason: str = "",
) -> TenantStanding:
    after = before.__replace__(
        phase=phase, moved_to=moved_to, reason=reason, disabled=phase is MovePhase.MOVED, changed_at=now
    )
    return await tx.tenants.put(after, expected=before.revision)


async def _require_nothing_under_way(tx: Transaction, tenant: Tenant, now: datetime) -> None:
    """End an offer of before that nothing came of. Raises Failure ALREADY_EXISTS for orders that go on."""
    before = await tx.tenant_moves.open_of(tenant)
    if before is not None and before.state is MoveState.OFFERED:
        await undo_offer(tx, before, now)
    elif before is not None and before.state not in (MoveState.LEFT,):
        why = f"{tenant} has the move {before.id} ({before.state}). {_SEE}"
        raise Failure(ErrorCode.ALREADY_EXISTS, why)
    orders = await tx.moved_rows.orders_under_way(tenant)
    if orders:
        why = f"{tenant} has orders that go on: {', '.join(orders)}. Wait for their end, or end them, first."
        raise Failure(ErrorCode.ALREADY_EXISTS, why)


async def _all_have_seen(store: Store) -> bool:
    """Wait until the transactions have ended that began before the last commit; False: not all have."""

    async def under_way() -> frozenset[str]:
        async with store.read() as tx:
            return await tx.tenants.under_way()

    before = await under_way()
    for _ in range(int(_LONGEST_S / _POLL_S)):
        if not before & await under_way():
            return True
        await asyncio.sleep(_POLL_S)
    return False


def _secret_hash(ring: KeyRing, move: TenantMove, secret: str) -> str:
    return ring.keyed_hash("tenant move", move.tenant, move.id, secret)


def _as_text(keys: dict[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(key).decode() for name, key in keys.items()}
