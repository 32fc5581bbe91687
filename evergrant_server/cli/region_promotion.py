"""The steps of `region promote`: each can be carried out again after the command was ended."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from evergrant_server.access.transactions import record
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import EnsureFresh
from evergrant_server.core.single_use.attempt import AttemptKind
from evergrant_server.crypto.keyring import Role
from evergrant_server.regions.approvals import NEEDED, order, public_keys, who_approved
from evergrant_server.regions.serving_region import Region
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.store.regions import Authority, OpenAttempt, Regions
from evergrant_server.temporal_link.reconcile import gather_bounded
from evergrant_server.wiring.platform import Platform, open_platform

_OPERATOR = RequestContext(by="operator")
_DRIFT = 1.05  # two hosts' clocks count the seconds of an authority
_LOOK_S = 0.5
_CALL_S = 10.0  # for one connection's refresh; its workflow goes on after it
_MAY_PROMOTE = (
    "As an administrator of PostgreSQL: GRANT EXECUTE ON FUNCTION pg_promote TO the role of this URL"
)

Report = dict[str, Any]


class Promotion:
    """One run of the command."""

    def __init__(
        self, settings: Settings, store: Store, region: Region, say: Callable[[str], None] | None
    ) -> None:
        self._settings, self._store, self._region = settings, store, region
        self._say = say or (lambda _: None)
        self._began = time.monotonic()
        self._seconds: dict[str, float] = {}

    async def run(self, approvals: Sequence[str] = (), *, old_region_ended: bool, wait_s: float) -> Report:
        """Raises Failure INVALID_REQUEST, NOT_PERMITTED, REGION_FENCED, STORE_CONFLICT,
        STORE_UNAVAILABLE, TEMPORAL_UNAVAILABLE."""
        before = await self._authority()
        if before.name != self._region.name:
            self._require_approvals(before, approvals)
            await self._take(before, old_region_ended=old_region_ended)
            before = await self._authority()
        if before.taken_at is None:
            raise Failure(ErrorCode.INVALID_REQUEST, f"{before.name} serves, and took over from no region.")
        async with open_platform(self._settings, Role.OPERATOR) as platform:
            # a provider's grace is running for these: they don't wait for the workflows of all others
            deciding = asyncio.create_task(self._decide(platform, before.taken_at, wait_s), name="attempts")
            try:
                counts = await platform.reconciler.reconcile_all(compare=False)
                self._done("workflows", f"{counts.live} live connections, {counts.started} workflows started")
                await deciding
            finally:
                deciding.cancel()
        attempts = await self._open_attempts(before.taken_at)
        fates = Counter(attempt.fate for attempt in attempts)
        self._done("attempts", f"{len(attempts)} were open: {_counted(fates)}")
        return {
            "region": before.name,
            "taken_from": before.taken_from,
            "taken_at": before.taken_at,
            "epoch": before.epoch,
            "connections": counts.live,
            "workflows_started": counts.started,
            "open_attempts": len(attempts),
            "fates": dict(fates),
            "lost": sorted({attempt.connection_id for attempt in attempts if attempt.fate == "lost"}),
            "waiting": sorted({attempt.connection_id for attempt in attempts if attempt.fate == "waits"}),
            "audit_records_complete_until": before.confirmed_at,
            "seconds": self._seconds,
        }

    async def _authority(self) -> Authority:
        async with self._store.read() as tx:
            authority = await tx.regions.authority()
        if authority is None:
            why = "No region has the authority: the database was never attached to another region's."
            raise Failure(ErrorCode.REGION_FENCED, why)
        return authority

    def _require_approvals(self, old: Authority, approvals: Sequence[str]) -> None:
        """Raises Failure APPROVAL_REQUIRED unless two of the approvers have approved this promotion."""
        try:
            approvers, now = public_keys(self._settings.region_approvers), SystemClock().now()
        except ValueError as error:
            raise BadSettings(f"EVERGRANT_REGION_APPROVERS: {error}") from None
        names = self._region.name, old.name, old.epoch, now
        if not approvers or len(who_approved(approvals, approvers, *names)) >= NEEDED:
            return
        why = f"{NEEDED} of {', '.join(sorted(approvers))} must approve: {order(*names)}"
        repair = (
            f"Each on a machine of theirs: python -m evergrant_server region approve NAME '{order(*names)}' "
            "--key FILE. Then add --approval with what each has printed."
        )
        raise Failure(ErrorCode.APPROVAL_REQUIRED, why, repair=repair)

    async def _take(self, old: Authority, *, old_region_ended: bool) -> None:
        """Make the database a primary, wait until the old region's authority is over, then take it."""
        if old.valid_until is None and not old_region_ended:
            why = (
                f"The authority of {old.name} has no bound, so it may go on: end its processes and its "
                "database, then add --old-region-ended."
            )
            raise Failure(ErrorCode.INVALID_REQUEST, why, field="old_region_ended")
        await self._promote_database()
        if not old_region_ended:
            # no renewal can follow: the barrier before it had to pass here while this was still a standby
            wait_s = old.authority_s * _DRIFT
            self._say(f"waiting {wait_s:.1f} s: until then {old.name} may lease")
            await asyncio.sleep(wait_s)
            self._done("old authority", f"{old.name} can't lease any more")
        async with self._store.write() as tx:
            if not await tx.regions.take(self._region.name, old):
                now = await tx.regions.authority()
                if now is not None and now.name == self._region.name:
                    return  # another run of the command was faster
                raise Failure(ErrorCode.STORE_CONFLICT, f"{old.name} was attached meanwhile: run this again.")
            name, tenant = self._region.name, Tenant(self._settings.tenant)
            at, action = SystemClock().now(), AuditAction.REGION_PROMOTED
            await record(tx, tenant, action, name, _OPERATOR, at, taken_from=old.name)
        self._done("authority", f"{self._region.name} serves")

    async def _promote_database(self) -> None:
        """Does nothing on a primary."""
        async with self._store.read() as tx:
            if not (await tx.regions.server()).in_recovery:
                return
        try:
            async with self._store.autocommit() as connection:
                is_primary = await Regions(connection).promote()
        except Failure as failure:
            if "may not do that" not in failure.detail:
                raise
            raise Failure(ErrorCode.NOT_PERMITTED, failure.detail, repair=_MAY_PROMOTE) from None
        if not is_primary:
            raise Failure(ErrorCode.STORE_UNAVAILABLE, "The standby wasn't promoted in time: run this again.")
        self._done("database", "it is a primary")

    async def _decide(self, platform: Platform, taken_at: datetime, wait_s: float) -> None:
        """Return once no attempt that was open still waits, or `wait_s` have passed. Workers decide them."""
        end = time.monotonic() + wait_s
        while True:
            waiting = [attempt for attempt in await self._open_attempts(taken_at) if attempt.fate == "waits"]
            if not waiting or time.monotonic() > end:
                return
            refreshes = [attempt for attempt in waiting if attempt.kind == AttemptKind.REFRESH]
            await gather_bounded(_refreshed(platform, attempt) for attempt in refreshes)
            await asyncio.sleep(_LOOK_S)

    async def _open_attempts(self, taken_at: datetime) -> list[OpenAttempt]:
        async with self._store.read() as tx:
            return await tx.regions.open_at(taken_at)

    def _done(self, step: str, what: str) -> None:
        self._seconds[step] = round(time.monotonic() - self._began, 2)
        self._say(f"{self._seconds[step]:7.2f} s  {step}: {what}")


async def _refreshed(platform: Platform, attempt: OpenAttempt) -> None:
    """Have the connection's workflow refresh it: its worker sends the credential again where it may."""
    wanted = EnsureFresh(seen_generation=attempt.from_generation, context=_OPERATOR)
    names = attempt.tenant, ConnectionId(attempt.connection_id)
    try:
        await platform.reconciler.start_workflow(*names)
        await platform.link.ensure_fresh(*names, wanted, timeout=_CALL_S)
    except Failure:
        return  # what became of it stands in the rows


def _counted(fates: Counter[str]) -> str:
    return ", ".join(f"{number} {fate}" for fate, number in fates.items()) or "nothing to decide"
