"""A worker's part in the audit log: heads and checkpoints every few seconds, and their anchors; and filing.

An anchor that is away, or refuses, stops nothing: a checkpoint that it hasn't kept for long is an alarm.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from activities.anchors import AnchorError, AnchorPort, AnchorRefusal, PathFrom
from activities.support.transactions import record_once_a_day
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.audit.checkpoints.proofs import extension_path
from evergrant_server.audit.filing import file_leases
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import Failure
from evergrant_server.store import Store
from evergrant_server.store.audit.checkpoints import Anchor, Checkpoint
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event, stack_frames

log = logging.getLogger("evergrant.audit")

INTERVAL = timedelta(seconds=5)
_LIMIT_S = 60.0  # of one anchor's turn


class AuditLogKeeper:
    """Records heads, signs checkpoints, files leases by their objects, and has each anchor keep the newest
    checkpoint. Belongs to one event loop."""

    def __init__(
        self, store: Store, clock: Clock, heads: HeadsLog, anchors: Sequence[AnchorPort], late: timedelta
    ) -> None:
        self._store, self._clock, self._heads, self._late = store, clock, heads, late
        self._anchors = {anchor.name: anchor for anchor in anchors}
        self._tried_at = dict.fromkeys(self._anchors, float("-inf"))
        self._turns: dict[str, asyncio.Task[None]] = {}
        self._logged: dict[str, str] = {}  # the last problem of each anchor, and of the heads

    async def run(self, interval: timedelta = INTERVAL) -> None:
        """Work until cancelled."""
        with suppress(Failure):
            async with self._store.write() as tx:
                await tx.checkpoints.forget_anchors(self._anchors)
        try:
            while True:
                await self.advance()
                await self.file()
                await self.anchor_due()
                await asyncio.sleep(interval.total_seconds())
        finally:
            for turn in self._turns.values():
                turn.cancel()
            await asyncio.gather(*self._turns.values(), return_exceptions=True)

    async def advance(self) -> Checkpoint | None:
        """Record and sign what is new. A failure is logged, and the next turn tries again."""
        try:
            checkpoint = await self._heads.advance()
            self._logged.pop("", None)
            if checkpoint is not None:
                metrics.CHECKPOINTS.add(1)
            return checkpoint
        except Failure as failure:
            report_broken_authority(failure)
            self._log_once("", f"{failure.code}: {failure.detail}")
        except Exception as error:  # nothing would start it again
            self._log_once("", f"{type(error).__name__} at {stack_frames(error)[-1]}")
        return None

    async def file(self) -> None:
        """File the leases that are new. Another worker may be faster."""
        try:
            await file_leases(self._store)
        except Failure:
            pass
        except Exception as error:
            self._log_once("", f"{type(error).__name__} at {stack_frames(error)[-1]}")

    async def anchor_due(self) -> None:
        """Begin the turn of each anchor that has a new checkpoint to keep, and look which are late."""
        if not self._anchors:
            return
        with suppress(Failure):  # while the store is away nothing is new
            async with self._store.read() as tx:
                newest, kept = await tx.checkpoints.newest(), await tx.checkpoints.anchors()
                waits = {
                    name: await tx.checkpoints.first_beyond(kept[name].size if name in kept else 0)
                    for name in self._anchors
                }
            for name, anchor in self._anchors.items():
                await self._report_late(name, waits[name], kept.get(name))
                if newest is not None and waits[name] is not None and self._is_due(name, anchor):
                    self._tried_at[name] = seconds_since_boot()
                    self._turns[name] = asyncio.create_task(self.keep(anchor, newest, kept.get(name)))

    async def keep(self, anchor: AnchorPort, checkpoint: Checkpoint, before: Anchor | None) -> None:
        """Have the anchor keep the checkpoint, and write what it has answered."""
        problem, refused = None, False
        try:
            async with asyncio.timeout(_LIMIT_S):
                evidence = await anchor.keep(checkpoint.tree, before, self._path_to(checkpoint))
        except AnchorError as error:
            problem, refused = str(error), isinstance(error, AnchorRefusal)
        except TimeoutError:
            problem = f"{anchor.name}: no answer within {_LIMIT_S:.0f} s"
        except Exception as error:  # one anchor must not end the others
            problem = f"{anchor.name}: {type(error).__name__} at {stack_frames(error)[-1]}"
        else:
            before = Anchor(anchor.name, checkpoint.tree.size, self._clock.now(), evidence, None)
            self._logged.pop(anchor.name, None)
        metrics.count(metrics.ANCHORED, "refused" if refused else "failed" if problem else "kept")
        if before is None:
            before = Anchor(anchor.name, 0, self._clock.now(), b"", None)
        with suppress(Failure):
            async with self._store.write() as tx:
                await tx.checkpoints.put_anchor(before._replace(problem=problem))
        if problem is not None:
            self._log_once(anchor.name, problem)
        if refused:
            await self._record(AuditAction.ANCHOR_REFUSED, anchor.name, problem or "")

    def _is_due(self, name: str, anchor: AnchorPort) -> bool:
        turn = self._turns.get(name)
        rested = seconds_since_boot() - self._tried_at[name] >= anchor.every.total_seconds()
        return rested and (turn is None or turn.done())

    def _path_to(self, checkpoint: Checkpoint) -> PathFrom:
        async def path_from(size: int) -> list[bytes]:
            async with self._store.read() as tx:
                return list(await extension_path(tx, size, checkpoint.tree.size))

        return path_from

    async def _report_late(self, name: str, waiting: Checkpoint | None, kept: Anchor | None) -> None:
        """Set the metric of the oldest checkpoint that the anchor lacks; beyond the bound, record it.

        An anchor of which nothing is known yet is new, and has the whole time.
        """
        waited = timedelta(0)
        if waiting is not None and kept is not None:
            waited = self._clock.now() - max(waiting.at, kept.at)
        metrics.ANCHOR_LAG.set(waited.total_seconds(), {metrics.ANCHOR: name})
        if waited > self._late + self._anchors[name].every:
            since = self._clock.now() - waited
            await self._record(
                AuditAction.ANCHOR_LATE, name, f"has kept no checkpoint since {since:%Y-%m-%d %H:%M} UTC"
            )

    async def _record(self, action: AuditAction, name: str, why: str) -> None:
        """Log it, and record it in the installation's log, once a day."""
        now, detail = self._clock.now(), {"why": why}
        if await record_once_a_day(self._store, now, INSTALLATION, action, name, detail):
            log_event(log, logging.ERROR, LogEvent.ANCHOR_LATE, f"{name}: {why}", object=name)

    def _log_once(self, name: str, problem: str) -> None:
        if self._logged.get(name) != problem:
            self._logged[name] = problem
            event = LogEvent.ANCHOR_FAILED if name else LogEvent.CHECKPOINT_FAILED
            log_event(log, logging.WARNING, event, problem, object=name)
