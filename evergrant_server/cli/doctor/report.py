"""Runs all checks at the same time and prints each result with its repair."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Literal

from evergrant_server.cli.doctor import CheckFailed, callers, database, host, issuers, mtls, temporal
from evergrant_server.core.errors import Failure
from evergrant_server.settings import Settings

CHECK_TIMEOUT_S = 4.9  # each check ends within five seconds

Check = Callable[[Settings], Awaitable[str]]

CHECKS: dict[str, Check] = {
    "packages": host.packages,
    "catalogue": host.catalogue,
    "key file": host.key_file,
    "data folder": host.data_folder,
    "journal": host.journal,
    "database": database.reachable,
    "migrations": database.migrations,
    "keys of the database": database.keys_open,
    "authority": database.authority,
    "outbox": database.outbox,
    "revocations": database.revocations,
    "client certificates": database.certificates,
    "API keys": database.api_keys,
    "bindings": database.bindings,
    "logins": database.logins,
    "trusted issuers": issuers.trusted_issuers,
    "callers' addresses": callers.addresses,
    "clock, database": database.clock,
    "temporal": temporal.reachable,
    "temporal program": temporal.program,
    "namespace": temporal.namespace,
    "retention": temporal.retention,
    "search attributes": temporal.search_attributes,
    "workers": temporal.workers,
    "schedules": temporal.schedules,
    "clock, Temporal": temporal.clock,
    "public URL": host.public_url,
    "mTLS listener": mtls.listener,
    "mTLS proxy": mtls.proxy,
}


@dataclass(frozen=True)
class DoctorFinding:
    """`repair` is the command to run or the setting to change; empty when ok."""

    check: str
    ok: bool
    detail: str
    repair: str = ""


async def run(settings: Settings, output: Literal["text", "json"]) -> bool:
    """Print the result of every check; True without a problem."""
    found = await diagnose(settings)
    if output == "json":
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        for finding in found:
            print(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.check:<21} {finding.detail}")
            if finding.repair:
                print(f"         {'':<21} -> {finding.repair}")
        wrong = sum(not finding.ok for finding in found)
        print(f"{wrong} of {len(found)} checks found a problem" if wrong else f"all {len(found)} checks ok")
    return all(finding.ok for finding in found)


async def diagnose(settings: Settings, checks: dict[str, Check] = CHECKS) -> list[DoctorFinding]:
    """Run the checks at the same time. A check that fails or hangs doesn't affect the others."""
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
