"""`doctor`: every check side by side, each with what is wrong and the command that repairs it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Literal

from evergrant_server.cli import doctor_database, doctor_here, doctor_temporal
from evergrant_server.cli.diagnosis import CheckFailed
from evergrant_server.core.errors import Failure
from evergrant_server.settings import Settings

CHECK_TIMEOUT_S = 4.9  # each check answers within five seconds, whatever it waits for

Check = Callable[[Settings], Awaitable[str]]

CHECKS: dict[str, Check] = {
    "packages": doctor_here.packages,
    "catalogue": doctor_here.catalogue,
    "key file": doctor_here.key_file,
    "data folder": doctor_here.data_folder,
    "journal": doctor_here.journal,
    "database": doctor_database.reachable,
    "migrations": doctor_database.migrations,
    "keys of the database": doctor_database.keys_open,
    "outbox": doctor_database.outbox,
    "client certificates": doctor_database.certificates,
    "clock, database": doctor_database.clock,
    "temporal": doctor_temporal.reachable,
    "temporal program": doctor_temporal.program,
    "namespace": doctor_temporal.namespace,
    "retention": doctor_temporal.retention,
    "search attributes": doctor_temporal.search_attributes,
    "workers": doctor_temporal.workers,
    "schedules": doctor_temporal.schedules,
    "clock, Temporal": doctor_temporal.clock,
    "public URL": doctor_here.public_url,
}


@dataclass(frozen=True)
class DoctorFinding:
    """What one check found. `repair` is a command to type, or the setting to change; empty when ok."""

    check: str
    ok: bool
    detail: str
    repair: str = ""


async def run(settings: Settings, output: Literal["text", "json"]) -> bool:
    """Print what every check found; True when nothing is wrong."""
    found = await diagnose(settings)
    if output == "json":
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        for finding in found:
            _print(finding)
        wrong = sum(not finding.ok for finding in found)
        print(f"{wrong} of {len(found)} checks found a problem" if wrong else f"all {len(found)} checks ok")
    return all(finding.ok for finding in found)


async def diagnose(settings: Settings, checks: dict[str, Check] = CHECKS) -> list[DoctorFinding]:
    """Run the checks side by side: none hides, delays or stops another."""
    return list(await asyncio.gather(*(_run_check(name, check, settings) for name, check in checks.items())))


async def _run_check(name: str, check: Check, settings: Settings) -> DoctorFinding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return DoctorFinding(name, True, await check(settings))
    except CheckFailed as problem:
        return DoctorFinding(name, False, problem.detail, problem.repair)
    except Failure as failure:
        return DoctorFinding(name, False, f"{failure.code}: {failure.detail}", failure.rule.repair)
    except TimeoutError:
        return DoctorFinding(
            name, False, f"no answer within {CHECK_TIMEOUT_S:.0f} s", "Look at what it waits for, above."
        )
    except Exception as error:
        # a check that fails in a way nobody foresaw must not hide the others
        detail = f"the check itself failed: {type(error).__name__}"
        return DoctorFinding(name, False, detail, "EVERGRANT_LOG_LEVEL=DEBUG, and report it")


def _print(finding: DoctorFinding) -> None:
    print(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.check:<21} {finding.detail}")
    if finding.repair:
        print(f"         {'':<21} -> {finding.repair}")
