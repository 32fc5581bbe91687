"""What is known of the regions at one moment, and what an operator has to repair."""

from dataclasses import dataclass, field
from datetime import datetime

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.regions.barrier import NotConfirmed
from evergrant_server.regions.serving_region import Region
from evergrant_server.store import Store
from evergrant_server.store.regions import Authority, Server, Standby

_COMMAND = "python -m evergrant_server"
_SILENT_S = 2.0  # a standby reports every second
_SYNCHRONOUS = ("sync", "quorum")


@dataclass(frozen=True)
class RegionProblem:
    problem: str
    repair: str


@dataclass
class RegionStatus:
    """`connections_at_stake` have tokens that a fail-over now would lose, at most; None on a standby."""

    region: str
    serves: str | None  # the region with the authority
    is_standby: bool  # this region's database is one
    standalone: bool
    epoch: int
    authority_s: float | None  # what is left of it; None: it has no bound
    confirmed_at: datetime | None
    waits_for: str
    unconfirmed: str  # why the other region may not have everything up to now; empty: it has, or is asked not
    repair: str  # of that
    standbys: list[Standby]
    behind_s: float | None  # on a standby: how old the last change is that it has applied
    connections_at_stake: int | None
    problems: list[RegionProblem] = field(default_factory=list)


async def region_status(store: Store, region: Region) -> RegionStatus:
    """Look at the rows and the server, and ask the other region to confirm.

    Raises Failure STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        authority, server = await tx.regions.authority(), await tx.regions.server()
        behind_s = await tx.regions.behind_s() if server.in_recovery else None
    why = "" if server.in_recovery else await _unconfirmed(region)
    at_stake: int | None = 0
    if server.in_recovery:
        at_stake = None
    elif why:
        async with store.read() as tx:
            at_stake = await tx.regions.connections_at_stake(authority and authority.confirmed_at)
    remaining = None if authority is None else authority.remaining_s
    return RegionStatus(
        region=region.name,
        serves=authority and authority.name,
        is_standby=server.in_recovery,
        standalone=authority is not None and authority.standalone,
        epoch=0 if authority is None else authority.epoch,
        authority_s=None if remaining == float("inf") else remaining,
        confirmed_at=authority and authority.confirmed_at,
        waits_for=server.waits_for,
        unconfirmed=why,
        repair=_repair(server) if why else "",
        standbys=list(server.standbys),
        behind_s=behind_s,
        connections_at_stake=at_stake,
        problems=_problems(region, authority, server, why),
    )


async def _unconfirmed(region: Region) -> str:
    """Why the other region doesn't confirm; empty: it does."""
    try:
        await region.barrier.passed()
    except NotConfirmed as problem:
        return str(problem)
    return ""


def _problems(region: Region, authority: Authority | None, server: Server, why: str) -> list[RegionProblem]:
    found: list[RegionProblem] = []
    if authority is None:
        attach = f"In the region that serves, once its standby streams: {_COMMAND} region attach"
        return [RegionProblem("no region has the authority: nothing is leased", attach)]
    if server.in_recovery:
        return found
    if authority.name != region.name:
        found.append(
            RegionProblem(
                f"{authority.name} has the authority, and this database of {region.name} is no standby",
                "If it was promoted by hand, or the command was ended: python -m evergrant_server region "
                "promote. If it served before a fail-over: make it a standby (docs/guide/regions.md)",
            )
        )
        return found
    if authority.standalone:
        again = f"Once the other region's database streams again: {_COMMAND} region attach"
        return [RegionProblem("this region serves alone: there is none to fail over to", again)]
    if authority.remaining_s <= 0:
        detach = f"If the other region is down and stays down: {_COMMAND} region detach"
        found.append(RegionProblem(f"the authority of {region.name} is over: nothing is leased", detach))
    if why:
        found.append(RegionProblem(f"the other region doesn't confirm: {why}", _repair(server)))
    elif server.default_commit not in ("local", "off"):
        local = "ALTER SYSTEM SET synchronous_commit = local; SELECT pg_reload_conf()"
        found.append(RegionProblem("every commit waits for the other region, leases too", local))
    return found


def _repair(server: Server) -> str:
    if not server.waits_for:
        return "ALTER SYSTEM SET synchronous_standby_names = 'b'; SELECT pg_reload_conf()    # its name"
    if not server.standbys:
        return "Start the standby, or mend its way here: its log says why it doesn't stream"
    if any(standby.state is None for standby in server.standbys):
        return "As an administrator, to see why: GRANT pg_monitor TO the role of EVERGRANT_DATABASE_URL"
    if not any(standby.sync_state in _SYNCHRONOUS for standby in server.standbys):
        return f"No standby has the application_name that the server waits for: {server.waits_for}"
    if all((standby.silent_s or 0) > _SILENT_S for standby in server.standbys):
        return "The standby has fallen silent: look at its host and at the network between the regions"
    return "The standby streams: run this again; then look at its disk"


def not_here(status: RegionStatus) -> Failure:
    """The failure of a command for the region that serves, in another one."""
    why = f"{status.region} doesn't serve: {status.serves or 'no region'} has the authority."
    return Failure(ErrorCode.REGION_FENCED, why)
