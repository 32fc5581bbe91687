"""What is done with the containers, from inside the namespaces, each step with its seconds.

The version before is installed and connected, then upgraded to this one; each service is restarted, and
everything is taken down and up again.
"""

import argparse
import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from examples.demo.evergrant_api import ApiProblem, EvergrantApi
from examples.demo.waiting import WaitTimedOut, wait_until
from tests.containers import HERE
from tests.containers.machine import ADDRESS, StepFailed, run
from tests.e2e.world import define, leave
from tests.fakes.certificates import LoopbackTls, loopback_tls
from tests.fakes.providers.scripted_provider import ScriptedProvider

ROLES = {"api": "api", "gateway": "gateway", "worker-1": "worker", "worker-2": "worker"}
SERVED = (*ROLES, "postgres", "temporal")
URL = "http://127.0.0.1:8480"
_WITHIN_S = 240.0
_PATHS = {"authorization": "authorize", "token": "token", "revocation": "revoke"}


@dataclass
class Site:
    """A folder with a compose file, and the environment that its commands have."""

    folder: Path
    environment: Mapping[str, str]

    async def compose(self, *words: str, within_s: float = 420) -> str:
        files = ("-f", str(self.folder / "docker-compose.yml"), "-f", str(HERE / "compose.stand-ins.yaml"))
        command = (
            "docker",
            "compose",
            "--project-name",
            "evergrant",
            "--project-directory",
            str(self.folder),
        )
        return await run(*command, *files, *words, env=dict(self.environment), within_s=within_s)

    async def up(self) -> None:
        await self.compose("up", "--detach", "--wait", "--no-build", "--pull", "never")


@dataclass
class Story:
    idp: ScriptedProvider
    tls: LoopbackTls
    site: Site
    seconds: dict[str, float] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    key: str = ""
    connection: str = ""

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        self.seen.append(name)
        print(f"  {name:<18} {self.seconds[name]:6.1f} s", flush=True)

    async def connect(self) -> None:
        """An admin defines the provider and an integration, an app asks, and its subject consents."""
        admin_key = (
            await self.site.compose("run", "--rm", "--no-deps", "-T", "worker-1", "keys", "bootstrap")
        ).split()
        (key,) = (word for word in admin_key if word.startswith("evg_key_"))
        async with EvergrantApi(URL, key) as admin:
            document = {
                "name": "acme-crm", "display_name": "Acme", "auth_modes": ["authorization_code"],
                "client_auth": "client_secret_post", "refresh_rotates": True,
                **{f"{end}_endpoint": self.at(path) for end, path in _PATHS.items()},
            }  # fmt: skip
            await define(admin, document)
            body = {"provider": "acme-crm", "client_id": self.idp.client_id, "binding": "none"}
            await admin.put("/v1/integrations/crm", {**body, "client_secret": self.idp.client_secret})
            await admin.put("/v1/apps/report", {})
            permit = {"integration": "crm", "subjects": ["alice"], "actions": ["token", "connect"]}
            await admin.put("/v1/apps/report/permits/crm", permit)
            self.key = (await admin.post("/v1/apps/report/keys"))["key"]
        async with EvergrantApi(URL, self.key) as app, self._browser() as browser:
            connection = await app.post("/v1/connections", {"integration": "crm", "subject": "alice"})
            consented = await browser.get(await leave(browser, connection["connect_url"]))
            await browser.get(consented.headers["location"], follow_redirects=True)
            await app.state(connection["id"], "active", _WITHIN_S)
        self.connection = connection["id"]

    def _browser(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(timeout=60, verify=self.tls.trust)

    def at(self, path: str) -> str:
        return self.idp.url(path).replace("127.0.0.1", ADDRESS)

    async def lease(self) -> int:
        """Lease until it works: a service may be coming back. Returns the grant's generation."""

        async def leased() -> dict[str, Any] | None:
            try:
                async with EvergrantApi(URL, self.key) as app:
                    return await app.lease("crm", "alice")
            except (httpx2.HTTPError, ApiProblem):
                return None

        lease = await wait_until(leased, "a lease", _WITHIN_S, 0.5)
        if not self.idp.active(lease["access_token"]):
            raise StepFailed("the leased token isn't the provider's")
        return int(lease["generation"])

    async def refresh(self) -> None:
        """A worker gets the next token."""
        before = await self.lease()
        async with EvergrantApi(URL, self.key) as app:
            await app.post(f"/v1/connections/{self.connection}/refresh")
            await app.generation(self.connection, before + 1, _WITHIN_S)
        if await self.lease() <= before:
            raise StepFailed("the lease after the refresh has the token of before")

    async def doctor(self) -> None:
        """Each container has what its role needs, and nothing that it must not have."""
        for service in ROLES:
            last: list[str] = []
            try:  # a busy machine takes longer than doctor waits for a check
                await wait_until(partial(self._is_content, service, last), "doctor", _WITHIN_S * 2, 2)
            except WaitTimedOut:
                raise StepFailed("\n".join(last)) from None

    async def _is_content(self, service: str, last: list[str]) -> bool | None:
        """True without a problem in this container; else `last` has the problems."""
        command = f"python -m evergrant_server doctor --role {ROLES[service]} -o json || true"
        findings = json.loads(await self.site.compose("exec", "-T", service, "sh", "-c", command))
        last[:] = [f"{service}: {it['check']}: {it['detail']}" for it in findings if not it["ok"]]
        return None if last else True


@asynccontextmanager
async def reachable(port: int) -> AsyncIterator[None]:
    """Hand connections to this port of the address that containers reach on to the provider, on loopback."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

    async with await asyncio.start_server(serve, ADDRESS, port):
        yield


async def tell(before: Path, after: Path, archives: tuple[Path, Path], temporal: Path) -> dict[str, float]:
    """Carry out every step. Raises StepFailed."""
    tls = loopback_tls(before.parent, ADDRESS)
    async with ScriptedProvider(tls=tls) as idp, reachable(idp.port):
        environment = {
            "EVERGRANT_EGRESS_ALLOW": f"{ADDRESS}:{idp.port}",
            "TEMPORAL_PROGRAM": str(temporal),
            "AUTHORITIES": str(tls.authorities),
        }
        story = Story(idp, tls, Site(before, environment))
        try:
            await _steps(story, after, archives)
        except BaseException:
            print(
                await story.site.compose("ps", "--all"),
                await story.site.compose("logs", "--tail", "25"),
                flush=True,
            )
            raise
    return story.seconds


async def _steps(story: Story, after: Path, archives: tuple[Path, Path]) -> None:
    async with story.step("up"):
        await run("docker", "load", "--input", str(archives[0]))
        await story.site.up()
    async with story.step("consent"):
        await story.connect()
    async with story.step("lease"):
        await story.lease()
    async with story.step("upgrade"):
        await run("docker", "load", "--input", str(archives[1]))
        await story.site.compose("stop", "worker-1", "worker-2", "api", "gateway")
        story.site = Site(after, story.site.environment)
        await story.site.up()
        await story.lease()
    async with story.step("doctor"):
        await story.doctor()
    async with story.step("refresh"):
        await story.refresh()
    for service in SERVED:
        async with story.step(f"restart {service}"):
            await story.site.compose("restart", service)
            await story.lease()
    async with story.step("refresh again"):
        await story.refresh()
    async with story.step("down and up"):
        await story.site.compose("down")
        await story.site.up()
        await story.lease()
    async with story.step("doctor again"):
        await story.doctor()
        await story.refresh()
    async with story.step("down"):
        await story.site.compose("down", "--volumes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("before", "after", "old", "new", "temporal", "report"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    try:
        told = asyncio.run(tell(given.before, given.after, (given.old, given.new), given.temporal))
    except (StepFailed, subprocess.SubprocessError, RuntimeError, ApiProblem) as failed:
        raise SystemExit(f"FAILED: {failed}") from None
    given.report.write_text(json.dumps(told), encoding="utf-8")
    os._exit(0)
