"""Runs the checks at the same time and prints each result with its repair, and one cause once.

A check that needs what another one looks at waits for it, and isn't carried out where that found a problem.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Literal

from evergrant_server.cli.doctor import (
    CheckFailed,
    audit_log,
    configuration,
    database,
    host,
    installation,
    keys,
    mtls,
    temporal,
)
from evergrant_server.core.errors import Failure
from evergrant_server.crypto import Role
from evergrant_server.settings import Settings

CHECK_TIMEOUT_S = 4.9  # each check ends within five seconds

Check = Callable[[Settings], Awaitable[str]]

CHECKS: dict[str, Check] = {
    "packages": host.packages,
    "catalogue": host.catalogue,
    "processes": installation.processes,
    "key file": keys.key_file,
    "key service": keys.key_service,
    "data folder": host.data_folder,
    "journal": host.journal,
    "database": database.reachable,
    "migrations": database.migrations,
    "keys of the database": keys.keys_open,
    "roots of processes": keys.roots_of_processes,
    "authority": database.authority,
    "hosts": configuration.hosts,
    "database role": database.role_of_database,
    "database servers": database.servers,
    "database connections": database.connections,
    "region": database.region,
    "outbox": database.outbox,
    "checkpoints": audit_log.checkpoints,
    "revocations": database.revocations,
    "client certificates": database.certificates,
    "admin key": installation.admin_key,
    "API keys": database.api_keys,
    "bindings": configuration.bindings,
    "logins": configuration.logins,
    "token limits": configuration.token_limits,
    "trusted issuers": configuration.trusted_issuers,
    "callers' addresses": configuration.addresses,
    "exchanges": configuration.exchanges,
    "confirmations": configuration.confirmations,
    "audit streams": configuration.audit_streams,
    "webhooks": configuration.webhooks,
    "clock, database": database.clock,
    "temporal": temporal.reachable,
    "temporal program": temporal.program,
    "namespace": temporal.namespace,
    "retention": temporal.retention,
    "search attributes": temporal.search_attributes,
    "workers": temporal.workers,
    "schedules": temporal.schedules,
    "stories": temporal.stories,
    "workflows": installation.workflows,
    "erasures": installation.erasures,
    "moves": installation.moves,
    "backups": audit_log.backups,
    "clock, Temporal": temporal.clock,
    "public URL": host.public_url,
    "mTLS listener": mtls.listener,
    "mTLS proxy": mtls.proxy,
}

_ROWS = ("key file", "key service", "migrations")  # of the database can be read
_TEMPORAL = ("temporal", "namespace")
NEEDS: dict[str, tuple[str, ...]] = {
    "migrations": ("database",),
    **dict.fromkeys(
        ("keys of the database", "roots of processes", "authority", "hosts", "database role", "outbox"), _ROWS
    ),
    **dict.fromkeys(("revocations", "client certificates", "admin key", "API keys"), _ROWS),
    **dict.fromkeys(("database connections", "region"), _ROWS),
    **dict.fromkeys(("bindings", "logins", "trusted issuers", "callers' addresses", "exchanges"), _ROWS),
    **dict.fromkeys(("confirmations", "audit streams", "webhooks", "checkpoints", "token limits"), _ROWS),
    **dict.fromkeys(("backups", "moves"), _ROWS),
    "clock, database": _ROWS,
    "temporal": ("processes",),
    "namespace": ("temporal",),
    **dict.fromkeys(("retention", "search attributes", "workers", "schedules", "clock, Temporal"), _TEMPORAL),
    **dict.fromkeys(("workflows", "erasures"), (*_ROWS, *_TEMPORAL)),
    "public URL": ("processes",),
}


@dataclass(frozen=True)
class DoctorFinding:
    """`repair` is the command to run or the setting to change; empty when ok.

    `because` names the check whose problem kept this one from being carried out; then `ok` is false.
    """

    check: str
    ok: bool
    detail: str
    repair: str = ""
    because: str = ""


async def run(settings: Settings, output: Literal["text", "json"], role: str | None = None) -> bool:
    """Print the result of every check, for the container of a role; True without a problem."""
    keys.ROLE.set(None if role is None else Role(role))
    findings = await diagnose(settings)
    if output == "json":
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _print(findings)
    return all(finding.ok for finding in findings)


def _print(findings: list[DoctorFinding]) -> None:
    for finding in findings:
        if finding.because:
            continue
        print(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.check:<21} {finding.detail}")
        if finding.repair:
            print(f"         {'':<21} -> {finding.repair}")
        if unchecked := [dependent.check for dependent in findings if dependent.because == finding.check]:
            print(f"         {'':<21} not checked because of it: {', '.join(unchecked)}")
    problems = sum(not finding.ok and not finding.because for finding in findings)
    unchecked_count = sum(bool(finding.because) for finding in findings)
    rest = f"; {unchecked_count} could not be carried out because of that" if unchecked_count else ""
    ends = f"{problems} of {len(findings)} checks found a problem{rest}"
    print(ends if problems else f"all {len(findings)} checks ok")


async def diagnose(
    settings: Settings, checks: dict[str, Check] = CHECKS, needs: dict[str, tuple[str, ...]] = NEEDS
) -> list[DoctorFinding]:
    """Run the checks at the same time. One that fails or hangs affects those alone that need it."""
    tasks: dict[str, asyncio.Task[DoctorFinding]] = {}

    async def run_after_needs(name: str) -> DoctorFinding:
        for needed in needs.get(name, ()):
            before = await tasks[needed]
            if not before.ok:
                return DoctorFinding(name, False, "not checked", because=before.because or needed)
        return await _run_check(name, checks[name], settings)

    for name in checks:
        tasks[name] = asyncio.create_task(run_after_needs(name))
    return list(await asyncio.gather(*tasks.values()))


async def _run_check(name: str, check: Check, settings: Settings) -> DoctorFinding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return DoctorFinding(name, True, await check(settings))
    except CheckFailed as problem:
        return DoctorFinding(name, False, problem.detail, problem.repair)
    except Failure as failure:
        return DoctorFinding(name, False, f"{failure.code}: {failure.problem}", failure.repair)
    except TimeoutError:
        return DoctorFinding(
            name,
            False,
            f"no answer within {CHECK_TIMEOUT_S:.0f} s",
            "See the checks above that found a problem.",
        )
    except Exception as error:  # an unexpected failure must not hide the other results
        detail = f"the check itself failed: {type(error).__name__}"
        return DoctorFinding(
            name, False, detail, "Run it again with EVERGRANT_LOG_LEVEL=DEBUG, and report it"
        )
