"""What `reconcile` does and prints, and `audit verify`."""

import time
from datetime import timedelta

from cyclopts import App

from evergrant_server import audit
from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings
from evergrant_server.temporal_link.reconcile import ReconcileCounts
from evergrant_server.wiring.platform import open_platform, open_store

audit_log = App(name="audit")


async def reconcile(settings: Settings, older_than: timedelta | None, compare: bool) -> None:
    progress = ProgressPrinter()
    async with open_platform(settings, Role.OPERATOR) as parts:
        result = await parts.reconciler.reconcile_all(
            compare=compare, older_than=older_than, on_progress=progress.print_progress
        )
    print_report(result, restarting=older_than is not None)


def print_report(result: ReconcileCounts, *, restarting: bool) -> None:
    """Print the result of a pass.

    Raises Failure STORE_BEHIND, TEMPORAL_UNAVAILABLE without answers, or INTERNAL for unreadable rows.
    """
    print(f"{result.live} live connections, {result.started} workflows started")
    if restarting:
        waiting = result.awaiting_provider.count
        print(f"{result.restarted} restarted, {waiting} left for later: their provider may still answer")
    for connection_id in result.store_behind.first:
        print(f"{connection_id}: the store is behind its workflow; restore a newer backup, or reauthorize it")
    for connection_id, why in result.unreadable.first:
        print(f"{connection_id}: skipped, {why}")
    for connection_id in result.unanswered.first:
        print(f"{connection_id}: its workflow doesn't answer, so the store may be behind")
    for named in (result.store_behind, result.unreadable, result.unanswered):
        if unnamed := named.count - len(named.first):
            print(f"and {unnamed} more after {named.first[-1]}")
    if not result.workers_answered:
        print("no worker answers, so the rest was not compared; start a worker and run this again")
    if behind := result.store_behind.count:
        raise Failure(ErrorCode.STORE_BEHIND, f"{behind} connections are behind their workflows")
    if result.unanswered.count or not result.workers_answered:
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, f"{result.unanswered.count} workflows didn't answer")
    if unreadable := result.unreadable.count:
        raise Failure(ErrorCode.INTERNAL, f"{unreadable} connections have unreadable rows")


class ProgressPrinter:
    """Prints the progress of a pass, at most once a second."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()

    def print_progress(self, counts: ReconcileCounts) -> None:
        if time.monotonic() - self._printed_at < 1:
            return
        self._printed_at = time.monotonic()
        line = f"{counts.live} live, {counts.started} started, {counts.store_behind.count} behind"
        print(f"{line}, {counts.restarted} restarted" if counts.restarted else line, flush=True)


@audit_log.command
async def verify(*, flags: Flags | None = None) -> None:
    """Check every tree of the audit log, the whole heads log too, and name the first record that doesn't
    match."""
    settings = settings_of(flags)
    async with open_store(settings, Role.API) as (store, _):
        verdict = await audit.verify_log(store, Tenant(settings.tenant))
    print(verdict)
    if not verdict.ok:
        raise Failure(ErrorCode.AUDIT_UNAVAILABLE, "the audit log was altered at the record above")
