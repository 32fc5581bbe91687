"""`region`: which region serves, what a fail-over would lose, and the fail-over itself."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from evergrant_server.access.transactions import record
from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto.keyring import Role
from evergrant_server.regions.approvals import approve as signature
from evergrant_server.regions.approvals import new_approver
from evergrant_server.regions.serving_region import Region
from evergrant_server.regions.status import RegionStatus, not_here, region_status
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.wiring.platform import open_store, region_of

region_app = App(name="region")

Output = Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])]
OPERATOR = RequestContext(by="operator")


@region_app.command
async def status(*, output: Output = "text", flags: Flags | None = None) -> None:
    """Print which region serves, whether the other one has everything, and how many connections' tokens a
    fail-over would lose now. Exits 1 where something is to be repaired.

    Args:
        output: `text` or `json`.
    """
    async with opened(settings_of(flags)) as (store, region):
        now = await region_status(store, region)
    print(as_json(asdict(now)) if output == "json" else "\n".join(_lines(now)))
    if now.problems:
        raise SystemExit(1)


@region_app.command
async def attach(*, flags: Flags | None = None) -> None:
    """Have the region that serves wait for the other one, whose database is a standby that streams.

    From here on a refresh is sent once the other region knows of it. Does nothing the second time.
    """
    settings = settings_of(flags)
    async with opened(settings) as (store, region):
        now = await region_status(store, region)
        if now.is_standby or now.serves not in (None, region.name):
            raise not_here(now)
        if now.unconfirmed:
            raise Failure(
                ErrorCode.REGION_AWAY, f"Nothing was changed: {now.unconfirmed}.", repair=now.repair
            )
        if now.serves is None or now.standalone:
            await _put(store, settings, region, AuditAction.REGION_ATTACHED, standalone=False)
        await region.renew()
    print(f"{region.name} serves, and waits for {now.waits_for}")


@region_app.command
async def detach(
    *,
    other_region_stays_down: Annotated[bool, Parameter(negative=())] = False,
    flags: Flags | None = None,
) -> None:
    """Have this region serve alone: it waits for no other one, and its authority has no bound.

    If the other region is promoted after this, both lease and both spend the same refresh tokens.

    Args:
        other_region_stays_down: Nobody promotes the other region until `region attach`: its database is shut
            down, or it is thrown away.
    """
    settings = settings_of(flags)
    if not other_region_stays_down:
        why = "--other-region-stays-down is missing: shut the other region's database down first"
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="other_region_stays_down")
    async with opened(settings) as (store, region):
        async with store.read() as tx:
            authority, server = await tx.regions.authority(), await tx.regions.server()
        if server.in_recovery or (authority is not None and authority.name != region.name):
            raise not_here(await region_status(store, region))
        if authority is None or not authority.standalone:
            await _put(store, settings, region, AuditAction.REGION_DETACHED, standalone=True)
    print(f"{region.name} serves alone")


@region_app.command
def approver(name: str, *, out: Path) -> None:
    """Make a key with which a person approves promotions; print what EVERGRANT_REGION_APPROVERS gets of it.

    Args:
        name: The person's name.
        out: The file of the private key. It stays with the person, and on no host of Evergrant's.
    """
    private, entry = new_approver(name)
    with open(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    print(entry)


@region_app.command
def approve(name: str, ordered: str, *, key: Path) -> None:
    """Print a person's approval of the promotion that `region promote` has named. It is good for an hour.

    Args:
        name: The person's name, as in EVERGRANT_REGION_APPROVERS.
        ordered: What `region promote` asks to approve. Read it.
        key: The file of the private key.
    """
    try:
        print(f"{name}={signature(key.read_bytes(), ordered)}")
    except (OSError, ValueError) as error:
        raise Failure(ErrorCode.INVALID_REQUEST, f"{key}: {error}", field="key") from None


@region_app.command
async def promote(
    *,
    approval: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    old_region_ended: Annotated[bool, Parameter(negative=())] = False,
    wait: float = 90.0,
    output: Output = "text",
    flags: Flags | None = None,
) -> None:
    """Have this region serve in place of the other one, and print what became of everything.

    Its database becomes a primary; the authority of the old region is waited out; every live connection gets
    a workflow here; attempts that were open are decided by their provider's rules. It can be run again after
    it was ended at any point.

    Args:
        approval: What `region approve` has printed, of two persons: where EVERGRANT_REGION_APPROVERS is set.
        old_region_ended: No process of the old region's runs or comes back, so its authority isn't waited
            out. Needed where that has no bound (EVERGRANT_REGION_AUTHORITY).
        wait: Seconds to wait for attempts whose provider may still answer. They are decided without it, too.
        output: `text` or `json`.
    """
    settings = settings_of(flags)
    from evergrant_server.cli.region_promotion import Promotion

    async with opened(settings) as (store, region):
        promotion = Promotion(settings, store, region, None if output == "json" else print)
        report = await promotion.run(approval, old_region_ended=old_region_ended, wait_s=wait)
    print(as_json(report) if output == "json" else "\n".join(f"{name}: {report[name]}" for name in report))


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Store, Region]]:
    """Raises BadSettings where there is one region."""
    async with open_store(settings, Role.OPERATOR) as (store, _):
        region = region_of(settings, store)
        if region is None:
            raise BadSettings("EVERGRANT_REGION: name this region (docs/guide/regions.md)")
        yield store, region


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, default=_plain)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


async def _put(
    store: Store, settings: Settings, region: Region, action: AuditAction, *, standalone: bool
) -> None:
    async with store.write() as tx:
        await tx.regions.put(region.name, standalone=standalone)
        await record(tx, Tenant(settings.tenant), action, region.name, OPERATOR, SystemClock().now())


def _lines(now: RegionStatus) -> list[str]:
    serves = now.serves or "none"
    lines = [
        f"region     {now.region}, {'a standby' if now.is_standby else 'a primary'}",
        f"serves     {serves}",
    ]
    if now.authority_s is not None:
        lines.append(f"authority  {max(now.authority_s, 0):.1f} s left")
    if now.is_standby:
        behind = (
            "nothing came yet" if now.behind_s is None else f"the last change is {now.behind_s:.1f} s old"
        )
        lines.append(f"standby    {behind}")
    else:
        lines.append(f"confirms   {now.unconfirmed or 'yes'}")
        lines += [f"standby    {_standby(each)}" for each in now.standbys]
        lines.append(f"at stake   {now.connections_at_stake} connections' tokens, if it failed over now")
    for each in now.problems:
        lines += [f"PROBLEM    {each.problem}", f"           -> {each.repair}"]
    return lines


def _standby(standby: Any) -> str:
    behind = "unknown" if standby.behind_bytes is None else f"{standby.behind_bytes} bytes behind"
    return f"{standby.name}, {standby.state or 'unknown'}, {standby.sync_state or 'unknown'}, {behind}"
