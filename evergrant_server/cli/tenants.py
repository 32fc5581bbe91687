"""`tenants`: which are served, held and erased. The host alone decides it: a caller of the API is of one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from cyclopts import App

from evergrant_server.access.erasure import Order, put_hold
from evergrant_server.access.erasure import erase as erase_target
from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.audit.erasure_orders import end_hold
from evergrant_server.cli import moves
from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.core.access import MovePhase, TenantStanding
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock, SystemClock
from evergrant_server.core.connections.erasure import Erasure, TargetKind
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import LegalHoldId, Tenant, is_slug
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto.keyring import Role
from evergrant_server.store import Store, Transaction
from evergrant_server.wiring.platform import open_store

tenants = App(name="tenants")
for command in (moves.move, moves.receive, moves.moves, moves.undo, moves.forget):
    tenants.command(command)

_LONGEST_REASON = 255
_OPERATOR = RequestContext(by="operator")


@tenants.command(name="list")
async def list_tenants(*, flags: Flags | None = None) -> None:
    """Print each tenant, whether it is enabled, and when and why that was last changed."""
    after: Tenant | None = None
    async with _store(flags) as store:
        while True:
            async with store.read() as tx:
                page = await tx.tenants.page(after)
                lines = [await _line(tx, tenant) for tenant in page]
            if not page:
                return
            print(*lines, sep="\n")
            after = page[-1].tenant


async def _line(tx: Transaction, standing: TenantStanding) -> str:
    try:
        word = _word(not await tx.tenants.is_enabled(standing.tenant))
    except Failure:
        return f"{standing.tenant}\tbroken\tsee: python -m evergrant_server authority verify"
    when = "" if standing.changed_at is None else standing.changed_at.isoformat(timespec="seconds")
    return "\t".join((standing.tenant, word, when, standing.reason)).rstrip()


@tenants.command
async def disable(tenant: str, *, reason: str, flags: Flags | None = None) -> None:
    """Stop all that a tenant gets: leases, tokens, new connections, connect pages, logins of its people.

    Holds in every process from the commit on. Connections, keys and rows stay, and workers go on refreshing.

    Args:
        tenant: The tenant's name.
        reason: Why, such as the number of a ticket; for the audit log and webhooks.
    """
    await _change(tenant, reason, flags, disabled=True)


@tenants.command
async def enable(tenant: str, *, reason: str, flags: Flags | None = None) -> None:
    """Serve a disabled tenant again, with all that it had.

    Args:
        tenant: The tenant's name.
        reason: Why; for the audit log and webhooks.
    """
    await _change(tenant, reason, flags, disabled=False)


async def _change(tenant: str, reason: str, flags: Flags | None, *, disabled: bool) -> None:
    async with _store(flags) as store:
        changed = await set_disabled(store, SystemClock(), Tenant(tenant), reason, disabled=disabled)
    print(f"{tenant} {'is now' if changed else 'was already'} {_word(disabled)}")


async def set_disabled(store: Store, clock: Clock, tenant: Tenant, reason: str, *, disabled: bool) -> bool:
    """Disable or enable a tenant, with the audit record, which webhooks get as an event.

    Repairs a row that is missing or broken. False: it was so already, and nothing is written. Raises Failure
    NOT_FOUND, and INVALID_REQUEST for a reason that no record can hold.
    """
    _checked_reason(reason)

    async def write(tx: Transaction) -> bool:
        if await _is_already(tx, tenant, disabled=disabled):
            return False
        now, before = clock.now(), await tx.tenants.to_change(tenant)
        if before is not None and before.phase is not MovePhase.HERE:
            why = (
                f"{tenant} is {before.phase} ({before.reason}). See: python -m evergrant_server tenants moves"
            )
            raise Failure(ErrorCode.STORE_CONFLICT, why)
        after = (before or TenantStanding(tenant=tenant, id=tenant)).__replace__(
            disabled=disabled, reason=reason, changed_at=now
        )
        await tx.tenants.put(after, expected=None if before is None else before.revision)
        action = AuditAction.TENANT_DISABLED if disabled else AuditAction.TENANT_ENABLED
        await record(tx, tenant, action, tenant, _OPERATOR, now, reason=reason)
        return True

    return await run_transaction(store, write)


def _checked_reason(reason: str) -> None:
    if not reason.strip() or not reason.isprintable() or len(reason) > _LONGEST_REASON:
        why = f"reason: 1 to {_LONGEST_REASON} printable characters"
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="reason")


async def _is_already(tx: Transaction, tenant: Tenant, *, disabled: bool) -> bool:
    """Raises Failure NOT_FOUND for a tenant that has no app either."""
    unknown = Failure(
        ErrorCode.NOT_FOUND, f"There is no tenant {tenant!r}. See: python -m evergrant_server tenants list"
    )
    if not is_slug(tenant):
        raise unknown
    try:
        return await tx.tenants.is_enabled(tenant) is not disabled
    except Failure as failure:
        if failure.code is not ErrorCode.AUTHORITY_BROKEN:
            raise
    if await tx.tenants.to_change(tenant) is None and not await tx.access.apps(tenant, limit=1):
        raise unknown
    return False


@tenants.command
async def durability(tenant: str, wanted: Literal["local", "region"], *, flags: Flags | None = None) -> None:
    """Have a tenant's leases wait until the other region has their audit records, or not. Processes know it
    within seconds.

    Args:
        tenant: The tenant's name.
        wanted: `region`: a lease waits for a round trip between the regions, and is refused while the other
            one is away. `local`: the records of the last moments are lost with a region.
    """

    async def write(tx: Transaction) -> None:
        now, action = SystemClock().now(), AuditAction.TENANT_DURABILITY_CHANGED
        await tx.regions.put_durability(Tenant(tenant), wanted)
        await record(tx, Tenant(tenant), action, tenant, _OPERATOR, now, durability=wanted)

    async with _store(flags) as store:
        await _require_known(store, Tenant(tenant))
        await run_transaction(store, write)
    print(f"{tenant}\t{wanted}")


@tenants.command
async def erase(tenant: str, *, reason: str, confirm: str, flags: Flags | None = None) -> None:
    """Erase a tenant for good: connections are revoked at their providers, keys destroyed, all rows deleted,
    and what audit records say. It can't be undone, and needs a running worker.

    Follow it with: python -m evergrant_server tenants erasures TENANT.

    Args:
        tenant: The tenant's name.
        reason: Why, such as the number of a ticket. It stays in the audit log: name no person.
        confirm: The tenant's name once more.
    """
    if confirm != tenant:
        why = f"--confirm must repeat the tenant's name: --confirm {tenant}"
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="confirm")
    wait = settings_of(flags).erasure_wait
    async with _store(flags) as store:
        await _require_known(store, Tenant(tenant))
        erasure = await erase_target(store, _order(tenant, reason), wait, partial(_required_here, tenant))
        await set_disabled(store, SystemClock(), Tenant(tenant), reason, disabled=True)
    print(_erasure_line(erasure))


@tenants.command
async def erasures(tenant: str, *, flags: Flags | None = None) -> None:
    """Print each erasure in a tenant, how far it has come, and which hold has refused it.

    Args:
        tenant: The tenant's name.
    """
    after: str | None = None
    async with _store(flags) as store:
        while True:
            async with store.read() as tx:
                page = await tx.erasures.page(Tenant(tenant), after, 500)
            if not page:
                return
            print(*map(_erasure_line, page), sep="\n")
            after = page[-1].id


@tenants.command
async def hold(
    tenant: str, *, reason: str, until: datetime | None = None, flags: Flags | None = None
) -> None:
    """Forbid that anything of a tenant is erased or pruned.

    Args:
        tenant: The tenant's name.
        reason: Why, such as the number of a case.
        until: When it ends by itself, in UTC, such as 2027-01-31T00:00:00; without it when it is released.
    """
    if until is not None and until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    async with _store(flags) as store:
        _checked_reason(reason)
        held = await run_transaction(store, lambda tx: put_hold(tx, _order(tenant, reason), until))
    print(f"{held.id}\t{tenant} is held")


@tenants.command
async def release(tenant: str, hold_id: str, *, reason: str, flags: Flags | None = None) -> None:
    """End a legal hold of a tenant, its connections or its subjects.

    Args:
        tenant: The tenant's name.
        hold_id: The hold, as `hold` or `evergrant holds ls` prints it.
        reason: Why it may go.
    """

    async def write(tx: Transaction) -> None:
        held = await tx.legal_holds.get(Tenant(tenant), LegalHoldId(hold_id))
        if held is None or held.ended_at is not None:
            why = f"{tenant} has no hold {hold_id} that lasts. See: evergrant holds ls"
            raise Failure(ErrorCode.NOT_FOUND, why)
        await end_hold(tx, held, reason, _OPERATOR, SystemClock().now())

    async with _store(flags) as store:
        _checked_reason(reason)
        await run_transaction(store, write)
    print(f"{hold_id}\tended")


async def _require_known(store: Store, tenant: Tenant) -> None:
    async with store.read() as tx:
        await _is_already(tx, tenant, disabled=True)


async def _required_here(tenant: str, tx: Transaction) -> dict[str, str]:
    """In the order's own transaction, for whose end a move waits before it closes the tenant. No approval is
    needed: who is on the host has the keys.

    Raises Failure INVALID_REQUEST for a tenant of another cell: to erase it would revoke what that uses.
    """
    standing = await tx.tenants.to_change(Tenant(tenant))
    if standing is not None and standing.phase is not MovePhase.HERE:
        forget = f"For what it has left here: python -m evergrant_server tenants forget {tenant}"
        raise Failure(ErrorCode.INVALID_REQUEST, f"{tenant} is {standing.phase}. {forget}")
    return {}


def _order(tenant: str, reason: str) -> Order:
    name, now = Tenant(tenant), SystemClock().now()
    return Order(name, TargetKind.TENANT, tenant, reason, _OPERATOR, now)


def _erasure_line(erasure: Erasure) -> str:
    counts = ", ".join(
        f"{number} {name}" for name, number in {**erasure.counts, "waiting": erasure.waiting}.items()
    )
    held = "" if erasure.hold_id is None else f"\tby {erasure.hold_id}"
    return f"{erasure.id}\t{erasure.kind}\t{erasure.target_hash}\t{erasure.state}{held}\t{counts}"


def _word(disabled: bool) -> str:
    return "disabled" if disabled else "enabled"


@asynccontextmanager
async def _store(flags: Flags | None) -> AsyncIterator[Store]:
    async with open_store(settings_of(flags), Role.OPERATOR) as (store, _):
        yield store
