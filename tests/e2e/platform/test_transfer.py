"""Grants are imported from another system and moved to a second installation without a new consent.

A real worker on a real Temporal server, the API served over HTTP, the `evergrant` command in
its own process, a provider that rotates refresh tokens and kills a family on reuse.
EVERGRANT_TEST_GRANTS says how many grants (12; the figure in docs/guide/moving-in.md is for 1000).
"""

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from evergrant import AsyncEvergrant, Lease

from evergrant_server.audit import verify_log
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.names import WorkflowName
from evergrant_server.core.secret import Secret
from evergrant_server.crypto.keyring import Role
from evergrant_server.wiring.platform import Platform, open_platform
from tests.e2e.world import COMMAND, run
from tests.fakes.databases import migrated_sqlite, sqlite_url
from tests.fakes.platform.installation import admin_key, prepared, running_worker
from tests.fakes.platform.serving import serving
from tests.fakes.providers.scripted_provider import Family, ScriptedProvider
from tests.fakes.rows import an_integration, discovered

GRANTS = int(os.environ.get("EVERGRANT_TEST_GRANTS", "12"))
TENANT = Tenant("acme")


@dataclass(frozen=True)
class Instance:
    """One installation: its API's address, an admin's key, and the worker's view of its store."""

    url: str
    key: str
    parts: Platform

    async def command(self, *arguments: str) -> tuple[int | None, str, str]:
        return await run(self.url, self.key, COMMAND, *arguments)

    async def imported(self, file: Path, *more: str) -> tuple[int | None, dict[str, Any]]:
        status, out, err = await self.command("import", str(file), "-o", "json", *more)
        assert out, err
        return status, json.loads(out)

    async def leases(self, subjects: list[str]) -> list[Lease]:
        gate = asyncio.Semaphore(16)
        async with AsyncEvergrant(self.url, self.key, deadline=timedelta(seconds=60)) as client:

            async def lease(subject: str) -> Lease:
                async with gate:
                    answer = await client.lease("crm", subject)
                assert isinstance(answer, Lease), answer
                return answer

            return await asyncio.gather(*(lease(it) for it in subjects))

    async def actions(self) -> dict[str, int]:
        """How often each action stands in the audit log; its chains are whole."""
        async with self.parts.store.read() as tx:
            rows = await tx.connection.exec_driver_sql(
                "SELECT action, count(*) FROM audit WHERE tenant <> '-' GROUP BY action"
            )
            counted = {str(action): int(count) for action, count in rows}
        if counted:
            verdict = await verify_log(self.parts.store, TENANT)
            assert verdict.ok, verdict
        return counted


@asynccontextmanager
async def instance(address: str, folder: Path, idp: ScriptedProvider) -> AsyncIterator[Instance]:
    """API, worker, database and keys of their own."""
    await asyncio.to_thread(folder.mkdir)
    await migrated_sqlite(folder)
    settings = await prepared(address, sqlite_url(folder), folder, (idp.allowance,))
    async with (
        open_platform(settings, Role.OPERATOR) as parts,
        running_worker(settings),
        serving(settings) as url,
    ):
        row = an_integration(TENANT, parts.clock.now(), **discovered(idp))
        async with parts.store.write() as tx:
            await tx.integrations.put(row, Secret(idp.client_secret), expected=None)
        yield Instance(url, await admin_key(parts), parts)


def grants_of(idp: ScriptedProvider, count: int) -> list[dict[str, Any]]:
    """What a system that did its own OAuth has: tokens of the provider, some of unknown expiry."""
    found = []
    for number in range(count):
        family = Family("read", "rt-" + secrets.token_urlsafe(16))
        idp.families.append(family)
        access = "at-" + secrets.token_urlsafe(16)
        family.access_tokens[access] = time.time() + 3600
        expiry: dict[str, Any] = {"expires": "unknown"} if number % 3 == 0 else {"expires_in": 3600}
        found.append(
            {
                "integration": "crm",
                "subject": f"user-{number}",
                "access_token": access,
                "refresh_token": family.refresh_token,
                "scopes": ["read"],
                **expiry,
            }
        )
    return found


@pytest.mark.soak
async def test_grants_move_in_and_on_to_a_second_instance(temporal_address: str, tmp_path: Path):
    async with ScriptedProvider() as idp, instance(temporal_address, tmp_path / "one", idp) as one:
        grants = grants_of(idp, GRANTS)
        subjects = [it["subject"] for it in grants]
        file = tmp_path / "grants.jsonl"
        foreign = json.dumps({**grants[0], "integration": "other", "subject": "x"})
        bad = ["{broken", foreign, '{"subject": "a", "subject": "b"}']
        file.write_text("\n".join([*(json.dumps(it) for it in grants), *bad]) + "\n")

        began = time.monotonic()
        status, dry = await one.imported(file, "--dry-run")
        assert (status, dry["would_import"], dry["imported"], dry["invalid"]) == (1, GRANTS, 0, 3)
        assert await one.actions() == {}
        dry_s = time.monotonic() - began

        began = time.monotonic()
        status, done = await one.imported(file)
        import_s = time.monotonic() - began
        assert (status, done["imported"], done["failed"]) == (1, GRANTS, 0), done
        await verified(one, idp, GRANTS, file)
        assert [(it["line"] - GRANTS, it["code"]) for it in done["failures"]] == [
            (1, "not_json"),
            (2, "not_found"),
            (3, "duplicate_member"),
        ]
        assert idp.refreshes == GRANTS

        status, again = await one.imported(file)
        assert (again["imported"], again["exists"], again["verified"]) == (0, GRANTS, 0)
        assert idp.refreshes == GRANTS  # the same file twice: nothing twice

        began = time.monotonic()
        leases = await one.leases(subjects)
        lease_s = time.monotonic() - began
        assert {it.generation for it in leases} == {2}
        assert all(idp.active(it.access_token) for it in leases)
        assert idp.refreshes == GRANTS
        counted = await one.actions()
        assert counted[AuditAction.CONNECTION_IMPORTED] == GRANTS
        assert counted[AuditAction.GRANT_INSTALLED] == GRANTS
        assert counted[AuditAction.GRANT_REFRESHED] == GRANTS
        assert counted[AuditAction.LEASE_ISSUED] == GRANTS
        assert not any("consent" in action for action in counted)

        began = time.monotonic()
        private, public, sealed = (tmp_path / name for name in ("private.json", "public.json", "grants.jwe"))
        assert (await one.command("export-key", str(private), str(public)))[0] == 0
        status, out, err = await one.command("export", "--to", str(public), "--out", str(sealed))
        assert status == 0, err
        assert sealed.stat().st_mode & 0o777 == 0o600
        assert len(sealed.read_text().splitlines()) == GRANTS
        text = sealed.read_text() + out
        assert not any(it.access_token in text for it in leases)
        counted = await one.actions()
        assert counted[AuditAction.CONNECTION_EXPORTED] == GRANTS
        assert counted[AuditAction.CONNECTIONS_EXPORTED] == 1
        assert counted[AuditAction.EXPORT_DELETED] == 1
        export_s = time.monotonic() - began

        async with instance(temporal_address, tmp_path / "two", idp) as two:
            status, refused = await two.imported(sealed)
            assert (status, refused["invalid"]) == (1, GRANTS)  # sealed, and no key was given
            began = time.monotonic()
            status, moved = await two.imported(sealed, "--key", str(private))
            assert (status, moved["imported"], moved["failed"]) == (0, GRANTS, 0), moved
            await verified(two, idp, 2 * GRANTS, sealed, "--key", str(private))
            leases = await two.leases(subjects)
            second_s = time.monotonic() - began
            assert all(idp.active(it.access_token) for it in leases)
            assert idp.refreshes == 2 * GRANTS
            assert all(family.alive for family in idp.families)  # no spent token was used
            counted = await two.actions()
            assert counted[AuditAction.CONNECTION_IMPORTED] == counted[AuditAction.LEASE_ISSUED] == GRANTS
        assert idp.count("authorize") == 0  # no subject was asked again
        await nothing_secret_in_temporal(one, idp)
        print(
            f"{GRANTS} grants: dry run {dry_s:.1f} s, import with a refresh each {import_s:.1f} s, "
            f"leases {lease_s:.1f} s, export {export_s:.1f} s, into the second instance {second_s:.1f} s"
        )


async def verified(where: Instance, idp: ScriptedProvider, refreshes: int, *imported: Any) -> None:
    """On a busy machine a request's time ends before all are; the same command does the rest."""
    async with asyncio.timeout(120):
        while idp.refreshes < refreshes:
            await where.imported(*imported)


async def nothing_secret_in_temporal(one: Instance, idp: ScriptedProvider) -> None:
    """Invariant 1, over the whole history of the export and of some connections, both instances'."""
    searched = 0
    tokens = [token for family in idp.families for token in (*family.access_tokens, *family.used)]
    query = f"WorkflowType = '{WorkflowName.EXPORT}' OR WorkflowType = 'ConnectionWorkflow'"
    async for found in one.parts.client.list_workflows(query):
        handle = one.parts.client.get_workflow_handle(found.id, run_id=found.run_id)
        text = json.dumps((await handle.fetch_history()).to_json_dict())
        assert not any(token in text for token in tokens), found.id
        searched += 1
        if searched >= 25:
            break
    assert searched


async def test_a_cold_import_refreshes_nothing_before_a_lease(temporal_address: str, tmp_path: Path):
    async with ScriptedProvider() as idp, instance(temporal_address, tmp_path / "one", idp) as one:
        file = tmp_path / "grants.jsonl"
        file.write_text("\n".join(json.dumps(it) for it in grants_of(idp, 4)))
        status, cold = await one.imported(file, "--no-verify")
        assert (status, cold["imported"], cold["unverified"]) == (0, 4, 4)
        assert idp.refreshes == 0
        await one.leases([f"user-{number}" for number in range(4)])
        assert idp.refreshes == 2  # those of unknown expiry
        status, warm = await one.imported(file)
        assert (status, warm["exists"], warm["verified"]) == (0, 4, 2)  # the others, now that it is asked for
        assert idp.refreshes == 4


async def test_a_dead_refresh_token_is_reported_and_the_rest_imported(temporal_address: str, tmp_path: Path):
    async with ScriptedProvider() as idp, instance(temporal_address, tmp_path / "one", idp) as one:
        grants = grants_of(idp, 3)
        grants[1]["refresh_token"] = "rt-spent-long-ago"
        file = tmp_path / "grants.jsonl"
        file.write_text("\n".join(json.dumps(it) for it in grants))
        status, done = await one.imported(file)
        assert (status, done["imported"], done["verified"], done["failed"]) == (1, 3, 2, 1)
        assert done["failures"][0] | {"detail": ""} == {"line": 2, "code": "grant_rejected", "detail": ""}
        assert "rt-spent" not in json.dumps(done)
        grants[1] |= {name: grants_of(idp, 1)[0][name] for name in ("access_token", "refresh_token")}
        file.write_text("\n".join(json.dumps(it) for it in grants))
        status, repaired = await one.imported(file)
        assert (status, repaired["exists"], repaired["imported"], repaired["verified"]) == (0, 2, 1, 1)
