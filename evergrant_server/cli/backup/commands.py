"""`backup`: its commands, and their reports in words."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, overload

from cyclopts import App, Parameter

from evergrant_server.cli.backup import copies
from evergrant_server.cli.backup.drill import DrillReport, drill
from evergrant_server.cli.backup.postgresql import Programs
from evergrant_server.cli.backup.restore import RestoreReport, restore
from evergrant_server.cli.backup.verification import Verified
from evergrant_server.cli.db import ProcessRoles, put_roles
from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.keyring import Role
from evergrant_server.process import exit_process
from evergrant_server.settings import Settings
from evergrant_server.store.database.copies import Behind
from evergrant_server.wiring.platform import new_ring

backup = App(name="backup")
Output = Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])]
_NEXT = """next:
  1. start the workers, not yet API and gateways
  2. python -m evergrant_server reconcile    # asks every workflow whether the store is behind it
  3. take back again what is named above, and order the erasures again (docs/guide/operations.md)
  4. start API and gateways; python -m evergrant_server doctor --role worker, --role api, --role gateway"""


@backup.command
async def take(out: Path, *, run_as: str = "postgres", flags: Flags | None = None) -> None:
    """Take a backup of the database while everything runs. Never overwrites one.

    The key file isn't in it: keep it elsewhere. Journals and Temporal need none.

    Args:
        out: The new file (SQLite), folder (PostgreSQL's base backup, which needs a role with REPLICATION), or
            file that ends in .dump (pg_dump).
        run_as: Where this is root: the system's user as whom PostgreSQL's server runs.
    """
    settings = settings_of(flags)
    await copies.take(settings, absolute(out), Programs(settings, run_as))
    print(
        f"wrote {out}, {copies.size_of(out)} bytes; try it out: python -m evergrant_server backup drill {out}"
    )


@backup.command(name="drill")
async def drill_backup(
    backup: Path | None = None,
    /,
    *,
    scratch: Path | None = None,
    run_as: str = "postgres",
    output: Output = "text",
    flags: Flags | None = None,
) -> None:
    """Restore a backup beside the running installation, verify it, and say what it lacks. Changes nothing.

    Opens the keys and every grant, checks every authenticator and the audit log, compares with the database
    in use, and deletes the copy. The result is recorded: `doctor` and the overview show the last one. Needs
    the full key file, and for PostgreSQL its server's programs. Exits 1 where something is wrong.

    Args:
        backup: A backup of yours. Without it: one that is taken now.
        scratch: The folder in which the copy lies meanwhile, with room for it; the system's by default.
        run_as: Where this is root: the system's user as whom PostgreSQL's server runs.
        output: `text` or `json`.
    """
    settings = settings_of(flags)
    programs = Programs(settings, run_as)
    report = await drill(settings, absolute(backup), scratch, programs)
    if output == "json":
        print(json.dumps(report.as_json(), indent=1))
    else:
        print("\n".join(drill_in_words(report)))
    if not report.ok:
        exit_process(1)


@backup.command(name="restore")
async def restore_backup(
    backup: Path | None = None,
    /,
    *,
    api_keys: Path | None = None,
    gateway_keys: Path | None = None,
    roles: ProcessRoles | None = None,
    run_as: str = "postgres",
    output: Output = "text",
    flags: Flags | None = None,
) -> None:
    """Put a backup in the place of the database, once API, gateways and workers have stopped.

    It is migrated and verified first; the database of before is kept beside it. Where that one can be read,
    connections that were refreshed since the backup are marked, so that no spent token is sent, and those
    that were revoked since are revoked again. Needs the full key file, the newest one. Exits 1 where the
    backup isn't whole: then nothing has changed.

    Args:
        backup: The backup. Without it: it is in place already, by other means, and is verified there.
        api_keys: Write the API's copy of the key file here anew.
        gateway_keys: Write the gateways' copy here anew.
        run_as: Where this is root: the system's user as whom PostgreSQL's server runs.
        output: `text` or `json`.
    """
    settings = settings_of(flags)
    chosen = (roles or ProcessRoles()).read(settings)
    report = await restore(settings, absolute(backup), Programs(settings, run_as))
    if report.placed:
        await put_roles(settings, chosen)
        _export_copies(settings, {Role.API: api_keys, Role.GATEWAY: gateway_keys})
    if output == "json":
        print(json.dumps(report.as_json(), indent=1))
    else:
        print("\n".join(restore_in_words(report)))
    if not report.placed:
        exit_process(1)


@overload
def absolute(place: Path) -> Path: ...
@overload
def absolute(place: Path | None) -> Path | None: ...
def absolute(place: Path | None) -> Path | None:
    """The place as PostgreSQL's programs find it, which run in another folder."""
    return None if place is None else place.absolute()


def _export_copies(settings: Settings, places: dict[Role, Path | None]) -> None:
    for role, out in places.items():
        if out is None:
            continue
        if not settings.uses_key_file:
            why = f"{settings.key_service} wraps the keys: there is no key file to copy to {out}."
            raise Failure(ErrorCode.INVALID_REQUEST, why)
        new_ring(settings, Role.OPERATOR).export(out, role)


def drill_in_words(report: DrillReport) -> list[str]:
    """The report's lines."""
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items())
    of = f"{report.engine}, {report.kind}, {report.bytes} bytes, schema {report.schema}"
    lines = [f"backup    {report.backup} ({of})", f"times     {steps}", *_verified_in_words(report.verified)]
    if report.behind is not None:
        lines += _behind_in_words(report.behind)
    return [
        *lines,
        "the backup is whole" if report.ok else "the backup can't be relied on: see PROBLEM above",
    ]


def restore_in_words(report: RestoreReport) -> list[str]:
    """The report's lines, and what is to be done next."""
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items())
    lines = [f"backup    {report.backup} ({report.kind}, schema {report.schema})", f"times     {steps}"]
    lines += _verified_in_words(report.verified)
    if not report.placed:
        return [*lines, "not restored: the backup isn't whole, and the database is as it was"]
    if report.behind is not None:
        lines += _behind_in_words(report.behind)
    if report.marks is not None:
        marks = report.marks
        counts = (
            f"{marks.reconnect} have to reconnect, {marks.revoking} are revoked again, {marks.left} are left"
        )
        lines.append(f"marked    {counts}")
    else:
        lines.append("marked    none: there was no database of before to compare with")
    if report.replaced is not None:
        lines.append(f"kept      the database of before: {report.replaced}; delete it once nothing is missed")
    return [*lines, "restored", _NEXT]


def _verified_in_words(found: Verified) -> list[str]:
    newest = "none" if found.newest_at is None else f"{found.newest_at:%Y-%m-%d %H:%M:%S} UTC"
    rows = f"{sum(found.tables.values())} in {sum(map(bool, found.tables.values()))} tables"
    log = f"{found.audit_records} records verified, the newest of {newest}"
    if found.checkpoint is not None:
        log += f"; the last checkpoint covers {found.checkpoint['heads']} heads, of {found.checkpoint['at']}"
    return [
        f"rows      {rows}",
        f"keys      {found.keys or 'not opened'}; {found.opened_grants} grants opened",
        f"authority {found.broken_rows} rows aren't Evergrant's",
        f"audit     {log}",
        *(f"PROBLEM   {problem}" for problem in found.problems),
    ]


def _behind_in_words(behind: Behind) -> list[str]:
    withdrawn = [f"{number} of {table}" for table, number in behind.withdrawn.items()]
    lines = [
        f"behind    {behind.refreshed} connections were refreshed since, {behind.ended} ended, "
        f"{behind.new_connections} are new, {behind.audit_records} audit records are missing",
        f"          taken back since: {', '.join(withdrawn) or 'nothing'}; erasures since: {behind.erasures}",
    ]
    return lines + [f"          {kind}: {_first(ids)}" for kind, ids in behind.named.items()]


def _first(ids: list[Any]) -> str:
    return ", ".join(ids[:10]) + (", …" if len(ids) > 10 else "")
