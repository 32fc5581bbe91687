"""One drill: grants of a real authorization server are stopped, revoked and shredded; the report is checked.

The server is django-oauth-toolkit, which counts the revocations that it gets, and says which refresh tokens
live. Each connection has consented there, in a browser's requests.
"""

import asyncio
import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
from evergrant.incident_report import ReportError, verify_report

from bench import installation
from bench.load import HOST
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from evergrant_server.crypto.keyring import Role
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.subject import Subject
from tests.fakes.ports import free_port
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.temporal import running_temporal
from tests.faults.rotation.members import Member

REDIRECT = "http://127.0.0.1:1/callback"  # no server listens there: the subject stops before it
_LONGEST_S = 1800.0
_TIMEOUT_S = 30.0
_TRIES = 400  # of a request while processes are killed


@dataclass
class Drill:
    """The installation that is drilled."""

    server: AuthorizationServer
    parts: Platform
    ready: installation.Installation
    connections: tuple[Connection, ...]
    members: list[Member]
    port: int

    async def send(self, method: str, path: str, key: str | None = None, **sent: Any) -> httpx2.Response:
        """A request of the admin, or with this key, repeated while no API answers."""
        headers = {"Authorization": f"Bearer {key or self.ready.admin_key}"}
        for _ in range(_TRIES):
            try:
                async with httpx2.AsyncClient(timeout=_TIMEOUT_S) as http:
                    url = f"http://{HOST}:{self.port}{path}"
                    reply = await http.request(method, url, headers=headers, **sent)
            except httpx2.HTTPError:
                await asyncio.sleep(0.2)
                continue
            if reply.status_code < 500:
                return reply
            await asyncio.sleep(0.2)
        raise TimeoutError(f"no API answers {method} {path}")

    async def leasable(self) -> list[str]:
        """The connections of which a token is still leased."""
        leased: list[str] = []
        for connection in self.connections:
            body = {"integration": connection.integration, "subject": connection.subject}
            reply = await self.send("POST", "/v1/lease", self.ready.key, json=body)
            leased += [connection.id] * (reply.status_code == 200)
        return leased


async def prove(
    folder: Path, database_url: str, *, connections: int, kills: bool, say: Callable[[str], None]
) -> list[str]:
    """Carry the drill out, killed and resumed halfway; returns what was wrong."""
    began = time.monotonic()
    async with running_drill(folder, database_url, connections) as drill:
        say(f"{connections} subjects have consented after {time.monotonic() - began:.0f} s")
        live, _ = await drill.server.refresh_tokens()
        wrong = [] if live == connections else [f"{live} refresh tokens live before the drill"]
        if len(await drill.leasable()) != connections:
            wrong.append("not every connection was leased from before the drill")
        incident, seconds = await _ordered(drill, kills, say)
        return wrong + await _checked(drill, incident, seconds, folder, say)


async def _ordered(drill: Drill, kills: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], float]:
    """Order the drill, kill each process halfway, pause and resume it; how it is in the end."""
    scope = {"kind": "breach", "integration": "crm"}
    plan = (await drill.send("GET", "/v1/incidents/plan", params=scope)).json()
    say(f"the plan: {plan['connections']} connections, {plan['integrations'][0]}")
    began = time.monotonic()
    body = {**scope, "confirm": "crm", "reason": "a drill"}
    incident = (await drill.send("POST", "/v1/incidents", json=body)).json()
    place, killed, stopped = f"/v1/incidents/{incident['id']}", False, False
    while incident["finished_at"] is None:
        if time.monotonic() - began > _LONGEST_S:
            raise TimeoutError(f"the incident doesn't end: {incident}")
        incident = (await drill.send("GET", place)).json()
        if not stopped and incident["state"] != "selecting":
            stopped = True
            say(f"all {incident['selected']} are stopped after {time.monotonic() - began:.1f} s")
        if kills and not killed and incident["ended"] * 2 >= incident["selected"] > 0:
            killed = True
            await _kill_halfway(drill, place, say)
        await asyncio.sleep(0.1)
    return incident, time.monotonic() - began


async def _kill_halfway(drill: Drill, place: str, say: Callable[[str], None]) -> None:
    for member in reversed(drill.members):  # the worker first: it works on until then
        await member.kill()
        ended = (await drill.send("GET", place)).json()["ended"]
        say(f"halfway: SIGKILL of {member.name}; {ended} have ended by its restart")
    await drill.send("POST", f"{place}/pause")
    await asyncio.sleep(2)
    before = (await drill.send("GET", place)).json()
    await asyncio.sleep(2)
    after = (await drill.send("GET", place)).json()
    say(f"paused: {before['ended']} and then {after['ended']} of {after['selected']} have ended")
    await drill.send("POST", f"{place}/resume")


async def _checked(
    drill: Drill, incident: dict[str, Any], seconds: float, folder: Path, say: Callable[[str], None]
) -> list[str]:
    """What isn't as the report says: at the authorization server, in the store, and in the report itself."""
    number, wrong = len(drill.connections), list[str]()
    report = (await drill.send("GET", f"/v1/incidents/{incident['id']}/report")).content
    (folder / "report.jsonl").write_bytes(report)
    lines = report.splitlines(keepends=True)
    verified = verify_report(lines)
    verify_report(lines, verified.key)
    live, _ = await drill.server.refresh_tokens()
    calls, answers = await drill.server.calls("revocation"), await drill.server.answers("revocation")
    say(f"{number} connections in {seconds:.1f} s, {number / seconds:.1f} a second: {incident['outcomes']}")
    say(f"the server: {calls} revocations, {answers}; {live} refresh tokens live")
    say(f"the report: {len(report):,} bytes, {verified.connections} connections, {verified.outcomes}")
    if verified.outcomes != {"confirmed": number}:
        wrong.append(f"the report says {verified.outcomes}")
    if live:
        wrong.append(f"{live} refresh tokens live at the server")
    if await drill.leasable():
        wrong.append("a token was leased after the drill")
    for change in (_edited, _without_line, _swapped):
        try:
            verify_report(change(list(lines)), verified.key)
        except ReportError as refused:
            say(f"a copy that is {change.__name__.strip('_').replace('_', ' ')}: {refused}")
        else:
            wrong.append(f"a report that is {change.__name__} verifies")
    return wrong


def _edited(lines: list[bytes]) -> list[bytes]:
    lines[1] = lines[1].replace(b'"confirmed"', b'"unknown"')
    return lines


def _without_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:1], *lines[2:]]


def _swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


@asynccontextmanager
async def running_drill(folder: Path, database_url: str, number: int) -> AsyncIterator[Drill]:
    """Fill the installation with as many connections, and run it: an API, a worker, Temporal."""
    async with (
        running_authorization_server(folder / "server", "--access-token-seconds", "3600") as server,
        running_temporal(folder) as temporal,
    ):
        await server.register(REDIRECT)
        replies = [reply async for reply in _consents(server, number)]
        port, address = free_port(), urlsplit(server.issuer).netloc
        allowed: dict[str, Any] = {"temporal_address": temporal.address, "egress_allow": (address,)}
        ready = await installation.prepare(
            folder,
            database_url,
            port,
            [],
            issuer=server.issuer,
            client_secret=server.client_secret,
            **allowed,
        )
        env = settings_environment(ready.settings)
        members = [
            Member("api", "evergrant_server serve", folder, lambda: env, port),
            Member("worker", "evergrant_server worker", folder, lambda: env),
        ]
        async with open_platform(ready.settings, Role.OPERATOR) as parts:
            await _know_server(parts, server)
            added = await installation.populate(ready, range(number), iter(replies).__next__)
            await prepare_namespace(parts.client, ready.settings.history_retention)
            for member in members:
                await member.start()
            for connection in added:
                await parts.reconciler.start_workflow(connection.tenant, connection.id)
            try:
                yield Drill(server, parts, ready, added, members, port)
            finally:
                for member in members:
                    await member.stop()


async def _know_server(parts: Platform, server: AuthorizationServer) -> None:
    """Have the integration be our client at this server."""
    url = server.issuer
    endpoints = Endpoints(
        issuer=url,
        authorization_endpoint=f"{url}/authorize/",
        token_endpoint=f"{url}/token/",
        revocation_endpoint=f"{url}/revoke_token/",
    )
    async with parts.store.write() as tx:
        before = await tx.integrations.by_name(installation.TENANT, "crm")
        assert before is not None
        changed = before.__replace__(client_id=server.client_id, endpoints=endpoints)
        await tx.integrations.put(changed, Secret(server.client_secret), expected=before.revision)


async def _consents(server: AuthorizationServer, number: int) -> AsyncIterator[dict[str, Any]]:
    """Token replies, each of a consent of its own: the subject allows, and the code is exchanged."""
    client = (server.client_id, server.client_secret)
    async with (
        Subject(server.user, server.password) as subject,
        httpx2.AsyncClient(base_url=server.issuer, trust_env=False, timeout=_TIMEOUT_S) as http,
    ):
        for _ in range(number):
            verifier = secrets.token_urlsafe(32)
            digest = hashlib.sha256(verifier.encode()).digest()
            query = {
                "response_type": "code",
                "client_id": server.client_id,
                "redirect_uri": REDIRECT,
                "scope": "read write",
                "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
                "code_challenge_method": "S256",
            }
            url = f"{server.issuer}/authorize/?{urlencode(query)}"
            landing = await subject.consent(url, stop_before=REDIRECT)
            code = parse_qs(urlsplit(landing.url).query)["code"][0]
            form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT}
            reply = await http.post("/token/", data=form | {"code_verifier": verifier}, auth=client)
            yield reply.raise_for_status().json()
