"""One campaign over connections that have consented at a real authorization server with one client, and do so
with another: in waves, while apps lease, while the worker is killed, paused and resumed.

The server is django-oauth-toolkit, which binds a refresh token to the client that has got it. Each subject
consents in a browser's requests; some decline, and some do nothing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from evergrant.incident_report import verify_report

from bench import installation
from bench.load import HOST
from evergrant_server import audit
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.campaigns import MONTH
from evergrant_server.crypto.keyring import Role
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.subject import Subject
from tests.fakes.ports import free_port
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.temporal import running_temporal
from tests.faults.incident.drill import Drill
from tests.faults.rotation.members import Member

OLD, NEW = "mail", "mail-2026"
_BROWSERS = 4
_LONGEST_S, _AGAIN_S = 3600.0, 20.0
_WAVES = 5
_DECLINES, _IDLES = 10, 7  # of as many subjects one


@dataclass
class Leases:
    """What an app got that leases all along."""

    count: int = 0
    failed: list[str] = field(default_factory=list[str])


@dataclass
class CampaignDrill(Drill):
    """The installation, with as many subjects. `ids`: their connections by subject."""

    number: int = 0
    ids: dict[str, str] = field(default_factory=dict[str, str])

    async def json(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        reply = await self.send(method, path, key, json=body)
        assert reply.is_success, (method, path, reply.text)
        return reply.json()

    async def connect(self, subject: str) -> dict[str, Any]:
        """What an app does, whether or not a campaign goes on."""
        body = {"integration": OLD, "subject": subject}
        return await self.json("POST", "/v1/connections", body, self.ready.key)

    async def in_browsers(self, subjects: list[str], visit: Callable[[Subject, str], Any]) -> None:
        """Have each subject do something in a browser, some at a time."""
        queue = list(reversed(subjects))

        async def work() -> None:
            async with Subject(self.server.user, self.server.password) as browser:
                while queue:
                    await visit(browser, queue.pop())

        await asyncio.gather(*(work() for _ in range(_BROWSERS)))


async def prove(
    folder: Path, database_url: str, *, connections: int, say: Callable[[str], None]
) -> list[str]:
    """Carry the campaign out, its worker killed halfway; returns what was wrong."""
    async with running_drill(folder, database_url, connections) as drill:
        began = time.monotonic()
        await drill.in_browsers(
            list(subjects_of(drill)), lambda browser, subject: _first(drill, browser, subject)
        )
        seconds = time.monotonic() - began
        say(f"{connections} subjects have consented to the first client after {seconds:.0f} s")
        leases = Leases()
        leasing = asyncio.create_task(_lease_all_along(drill, leases))
        try:
            campaign, wrong = await _campaign(drill, say)
        finally:
            leasing.cancel()
            await asyncio.gather(leasing, return_exceptions=True)
        return wrong + await _checked(drill, campaign, leases, folder, say)


def subjects_of(drill: CampaignDrill) -> list[str]:
    return [f"user-{number:04}" for number in range(drill.number)]


async def _first(drill: CampaignDrill, browser: Subject, subject: str) -> None:
    begun = await drill.connect(subject)
    drill.ids[subject] = begun["id"]
    await browser.consent(begun["connect_url"])


async def _lease_all_along(drill: CampaignDrill, leases: Leases) -> None:
    """What isn't a token is a failure, whatever it says: the API is never killed."""
    headers = {"Authorization": f"Bearer {drill.ready.key}"}
    async with httpx2.AsyncClient(
        base_url=f"http://{HOST}:{drill.port}", headers=headers, trust_env=False, timeout=60
    ) as http:
        while True:
            for subject in subjects_of(drill):
                reply = await http.post("/v1/lease", json={"integration": OLD, "subject": subject})
                leases.count += 1
                if reply.status_code != 200:
                    leases.failed.append(f"{subject}: {reply.text}")
                await asyncio.sleep(0.02)


async def _campaign(drill: CampaignDrill, say: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    """Begin it, have subjects answer as they are asked, kill its worker halfway, and end it."""
    names = {"integration": OLD, "successor": NEW}
    size = -(-drill.number // _WAVES)
    path = f"/v1/campaigns/plan?integration={OLD}&successor={NEW}&wave_size={size}"
    plan = await drill.json("GET", path)
    waves = [(wave["connections"], wave["subjects"], wave["leases"]) for wave in plan["waves"]]
    say(f"the forecast: {len(waves)} waves of connections, subjects and leases of a month: {waves}")
    every = max(1.0, size / 5)  # about as long as a wave's subjects take
    body = {**names, "confirm": OLD, "reason": "a drill", "wave_size": size, "every": every, "first_wave": 0}
    begun = await drill.json("POST", "/v1/campaigns", {**body, "remind": [2], "lasts": 7200, "end": "keep"})
    place, wrong, answered = f"/v1/campaigns/{begun['id']}", list[str](), dict[str, float]()
    killing: asyncio.Task[list[str]] | None = None
    began = time.monotonic()
    while True:
        campaign = await drill.json("GET", place)
        if time.monotonic() - began > _LONGEST_S:
            raise TimeoutError(f"the campaign doesn't go on: {campaign}")
        await _answer(drill, place, answered, wrong)
        if killing is None and campaign["consented"] * 2 >= len(_willing(drill)):
            killing = asyncio.create_task(_kill_halfway(drill, place, say))
        if len(answered) == drill.number and campaign["ended"] >= len(_willing(drill)):
            break
        await asyncio.sleep(0.2)
    wrong += ["no worker was killed"] if killing is None else await killing
    say(f"all have answered after {time.monotonic() - began:.0f} s")
    await drill.json("POST", f"{place}/end", {"end": "keep"})
    while campaign["finished_at"] is None:
        campaign = await drill.json("GET", place)
        await asyncio.sleep(0.2)
    return campaign, wrong


def _willing(drill: CampaignDrill) -> list[str]:
    """Who consents when asked."""
    return [
        subject
        for number, subject in enumerate(subjects_of(drill), 1)
        if number % _DECLINES and number % _IDLES
    ]


async def _answer(drill: CampaignDrill, place: str, answered: dict[str, float], wrong: list[str]) -> None:
    """Have those answer who were asked since, and once more who has consented in vain: a worker that is
    killed may take an answer of the server with it."""
    willing, names = set(_willing(drill)), {id: subject for subject, id in drill.ids.items()}
    waiting = [names[row["connection_id"]] for row in await _rows(drill, place) if row["step"] == "told"]
    now = time.monotonic()
    asked = [
        subject
        for subject in waiting
        if subject not in answered or (subject in willing and now - answered[subject] > _AGAIN_S)
    ]
    first = {subject for subject in asked if subject not in answered}
    answered |= dict.fromkeys(asked, now)

    async def answer(browser: Subject, subject: str) -> None:
        number = 1 + int(subject.rpartition("-")[2])
        if subject not in willing and number % _DECLINES:
            return
        opened = await drill.connect(subject)
        if opened["state"] != "active" or opened["connect_url"] is None:
            if subject in first:  # who comes again may have consented since
                wrong.append(f"{subject} got no link: {opened['state']}")
            return
        await browser.consent(opened["connect_url"], allow=subject in willing)

    await drill.in_browsers(asked, answer)


async def _rows(drill: CampaignDrill, place: str) -> list[dict[str, Any]]:
    rows, cursor = list[dict[str, Any]](), ""
    while True:
        page = await drill.json("GET", f"{place}/connections?limit=200{cursor}")
        rows += page["items"]
        if page["next_cursor"] is None:
            return rows
        cursor = f"&cursor={page['next_cursor']}"


async def _kill_halfway(drill: CampaignDrill, place: str, say: Callable[[str], None]) -> list[str]:
    """Kill the worker, pause, and look whether anybody is asked while it rests."""
    await drill.members[-1].kill()
    campaign = await drill.json("GET", place)
    say(f"halfway: SIGKILL of the worker; {campaign['consented']} have consented by its restart")
    await drill.json("POST", f"{place}/pause")
    await asyncio.sleep(2)
    before = await drill.json("GET", place)
    await asyncio.sleep(2)
    after = await drill.json("GET", place)
    say(f"paused: {before['asked']} and then {after['asked']} were asked")
    await drill.json("POST", f"{place}/resume")
    grew = (after["asked"], after["reminded"]) != (before["asked"], before["reminded"])
    return ["subjects were asked while it was paused"] if grew else []


async def _checked(
    drill: CampaignDrill,
    campaign: dict[str, Any],
    leases: Leases,
    folder: Path,
    say: Callable[[str], None],
) -> list[str]:
    """What isn't as the report says: in the audit log, at the authorization server, and in the report."""
    number, willing = drill.number, len(_willing(drill))
    report = (await drill.send("GET", f"/v1/campaigns/{campaign['id']}/report")).content
    (folder / "report.jsonl").write_bytes(report)
    verified = verify_report(report.splitlines(keepends=True))
    asks = Counter([await _asks(drill, id) for id in drill.ids.values()])
    twice = sum(count for times, count in asks.items() if times > 1)
    lost = number - sum(verified.outcomes.values())
    live_before, _ = await drill.server.refresh_tokens()
    renewed = await _ordered(drill, "refresh")
    ended = await _ordered(drill, "revoke")
    left, _ = await drill.server.refresh_tokens()
    table = {
        "connections": number,
        "asked": campaign["asked"],
        "consented": verified.outcomes.get("consented", 0),
        "declined": len([number for number in range(1, drill.number + 1) if not number % _DECLINES]),
        "kept": verified.outcomes.get("kept", 0),
        "reminders": campaign["reminded"],
        "double asks": twice,
        "lost": lost,
        "leases": leases.count,
        "leases failed": len(leases.failed),
        "refreshed afterwards, each by its own client": renewed.get("renewed", 0),
        "revoked then, what each client has got": ended.get("confirmed", 0),
        "refresh tokens live at the server, before": live_before,
        "refresh tokens live at the server, after": left,
    }
    for name, value in table.items():
        say(f"{name:>46} {value:>7,}")
    expected = {"consented": willing, "kept": number - willing}
    wrong = list(leases.failed)
    wrong += [] if verified.outcomes == expected else [f"the report says {verified.outcomes}, not {expected}"]
    wrong += [] if campaign["asked"] == number else [f"{campaign['asked']} were asked"]
    wrong += [f"{twice} were asked twice"] if twice else []
    wrong += [f"{lost} are lost"] if lost else []
    wrong += [] if renewed == {"renewed": number} else [f"a refresh of all afterwards: {renewed}"]
    wrong += [] if ended == {"confirmed": number} else [f"a revocation of all: {ended}"]
    wrong += [] if not left else [f"{left} refresh tokens live after all were revoked"]
    return wrong


async def _asks(drill: CampaignDrill, id: str) -> int:
    """How often the audit log says that a subject was asked, reminders aside."""
    since = SystemClock().now() - MONTH
    async with drill.parts.store.read() as tx:
        records = await audit.newest_records(
            tx, installation.TENANT, id, (AuditAction.RECONNECT_REQUESTED,), since
        )
    return len([record for record in records if "reminder" not in record.detail])


async def _ordered(drill: CampaignDrill, action: str) -> dict[str, int]:
    """The outcomes of a bulk order about all connections, each with the client that has got its grant."""
    body = {"action": action, "integration": OLD, "reason": "a drill", "confirm": OLD}
    order = await drill.json("POST", "/v1/connections/bulk", body)
    while order["finished_at"] is None:
        await asyncio.sleep(0.2)
        order = await drill.json("GET", f"/v1/connections/bulk/{order['id']}")
    return order["outcomes"]


@asynccontextmanager
async def running_drill(folder: Path, database_url: str, number: int) -> AsyncIterator[CampaignDrill]:
    """Run an installation with two integrations at the server, a client each: an API, a worker, Temporal."""
    async with (
        running_authorization_server(folder / "server", "--access-token-seconds", "3600") as server,
        running_temporal(folder) as temporal,
    ):
        port = free_port()
        settings: dict[str, Any] = {
            "temporal_address": temporal.address,
            "egress_allow": (urlsplit(server.issuer).netloc,),
            "public_url": f"http://{HOST}:{port}",
            "allow_unbound_consent": True,
        }
        ready = await installation.prepare(folder, database_url, port, [], **settings)
        env = settings_environment(ready.settings)
        members = [
            Member("api", "evergrant_server serve", folder, lambda: env, port),
            Member("worker", "evergrant_server worker", folder, lambda: env),
        ]
        async with open_platform(ready.settings, Role.OPERATOR) as parts:
            await prepare_namespace(parts.client, ready.settings.history_retention)
            for member in members:
                await member.start()
            drill = CampaignDrill(server, parts, ready, (), members, port, number)
            try:
                await _register(drill, server, parts)
                yield drill
            finally:
                for member in members:
                    await member.stop()


async def _register(drill: CampaignDrill, server: AuthorizationServer, parts: Platform) -> None:
    """Put both integrations, register their clients at the server, and let the app connect subjects."""
    for name in (OLD, NEW):
        body = {
            "provider": "generic",
            "issuer": server.issuer,
            "client_id": name,
            "client_secret": server.client_secret,
            "default_scopes": ["read", "write"],
            "binding": "none",
        }
        made = await drill.json("PUT", f"/v1/integrations/{name}", body)
        await server.register(made["redirect_uri"], client_id=name)
    permit = {"integration": OLD, "actions": ["connect", "token"]}
    await drill.json("PUT", "/v1/apps/pipeline/permits/mail", permit)
