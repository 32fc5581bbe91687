"""The steps of the demo, one function each, in order."""

import asyncio
import os
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import httpx2
from rich.console import Console

from examples.demo.authorization_server import AuthorizationServer
from examples.demo.claims import Claim, Claims, expect
from examples.demo.configuring import GRACE_S
from examples.demo.evergrant_api import ApiProblem, EvergrantApi, moment
from examples.demo.platform import EvergrantProcess
from examples.demo.waiting import wait_until

ACCESS_TOKEN_S = 20
CALLERS = 50


@dataclass
class Story:
    """The state that the steps share. `suffix` separates runs on one database."""

    console: Console
    claims: Claims
    server: AuthorizationServer
    platform: EvergrantProcess
    admin: EvergrantApi
    app: EvergrantApi
    app_key: str
    suffix: str
    by_hand: bool
    connection_id: str = ""
    secrets: list[str] = field(default_factory=list)

    @property
    def integration(self) -> str:
        return f"example-{self.suffix}"

    @property
    def app_name(self) -> str:
        return f"demo-{self.suffix}"

    @property
    def subject(self) -> str:
        return f"{self.server.user}-{self.suffix}"

    @property
    def workflow_id(self) -> str:
        return f"connection:default:{self.connection_id}"

    async def lease(self) -> dict[str, Any]:
        lease = await self.app.lease(self.integration, self.subject)
        self.secrets.append(lease["access_token"])
        return lease


async def consent(story: Story) -> None:
    body = {"integration": story.integration, "subject": story.subject}
    connection = await story.app.post("/v1/connections", body)
    story.connection_id = connection["id"]
    link = connection["connect_url"]
    story.secrets.append(link.rsplit("/", 1)[-1])
    if story.by_hand:
        story.console.print(
            f"Open this and log in as [b]{story.server.user}[/] / [b]{story.server.password}[/]:"
        )
        story.console.print(link, soft_wrap=True)
        pages = "in a person's browser"
    else:
        landing = await story.server.scripted_consent(link)
        status = landing.response.status_code if landing.response is not None else 0
        expect(status == 200, f"the browser ended at a page with status {status}")
        pages = f"{landing.pages} pages filled in"
    patience = 3600 if story.by_hand else 30
    found = await story.app.state(story.connection_id, "active", patience)
    story.claims.observed(Claim.CONSENT, f"{pages}, generation {found['generation']}")


async def call_resource(story: Story) -> None:
    began = monotonic()
    lease = await story.lease()
    took = (monotonic() - began) * 1000
    answer = await story.server.whoami(lease["access_token"])
    expect(answer.status_code == 200, f"the resource answered {answer.status_code}")
    expect((await story.server.whoami("not-a-token")).status_code == 401, "the resource takes anything")
    account = answer.json()
    story.claims.observed(
        Claim.RESOURCE,
        f"lease in {took:.0f} ms, it says {account['user']} with {' '.join(account['scopes'])}",
    )


async def let_it_expire(story: Story) -> None:
    """An app used generation 1, so Evergrant replaces it before its expiry without a request."""
    before = await story.lease()
    refreshes, (live, spent) = await story.server.calls("refresh_token"), await story.server.refresh_tokens()
    expires_at = moment(before["expires_at"])
    after = await story.app.generation(story.connection_id, before["generation"] + 1, ACCESS_TOKEN_S + 15)
    ahead = (expires_at - datetime.now(UTC)).total_seconds()
    await _pass(expires_at)
    old = await story.server.whoami(before["access_token"])
    expect(old.status_code == 401, f"the expired token still opened the resource ({old.status_code})")
    sent = await story.server.calls("refresh_token") - refreshes
    live_now, spent_now = await story.server.refresh_tokens()
    expect(sent == 1, f"{sent} refreshes reached the authorization server")
    expect((live_now, spent_now) == (live, spent + 1), f"refresh tokens: {live_now} live, {spent_now} spent")
    story.claims.observed(
        Claim.ROTATED,
        f"generation {before['generation']} -> {after['generation']}, {ahead:.0f} s ahead; "
        f"refresh tokens at the server: {live_now} live, {spent_now} spent",
    )


async def ask_all_at_once(story: Story) -> None:
    """No app used the current generation, so it expired; then many callers request it at once."""
    found = await story.app.connection(story.connection_id)
    await _pass(moment(found["expires_at"]))
    before = await story.server.calls("refresh_token")
    began = monotonic()
    leases = await asyncio.gather(*(story.lease() for _ in range(CALLERS)))
    took = monotonic() - began
    sent = await story.server.calls("refresh_token") - before
    generations = {lease["generation"] for lease in leases}
    expect(sent == 1, f"the authorization server counted {sent} refreshes")
    expect(generations == {found["generation"] + 1}, f"the callers got generations {sorted(generations)}")
    expect(len({lease["access_token"] for lease in leases}) == 1, "the callers got different tokens")
    answer = await story.server.whoami(leases[0]["access_token"])
    expect(answer.status_code == 200, f"the resource answered {answer.status_code}")
    story.claims.observed(
        Claim.COALESCED, f"{len(leases)} leases in {took:.1f} s, the server counted {sent} refresh"
    )


async def kill_the_worker(story: Story) -> None:
    """Kill the worker after the server has processed the refresh and before its answer arrives."""
    before = await story.app.connection(story.connection_id)
    pid = story.platform.worker_pid()
    sent = await story.server.calls("refresh_token")
    await story.server.hold_next("refresh_token")
    asking = asyncio.create_task(story.admin.post(f"/v1/connections/{story.connection_id}/refresh"))
    try:
        await wait_until(_held(story, "holding", 1), "a refresh to be withheld", 30)
        os.kill(pid, signal.SIGKILL)
        killed = monotonic()
        await wait_until(_held(story, "abandoned", 1), "the dead worker's connection to close", 30)
        new_pid = await story.platform.new_worker(pid)
        after = await story.app.generation(story.connection_id, before["generation"] + 1, 60)
    finally:
        await _give_up(asking)
        await story.server.release()
    took = monotonic() - killed
    expect(after["state"] == "active", f"the connection is {after['state']}")
    lease = await story.lease()
    answer = await story.server.whoami(lease["access_token"])
    expect(answer.status_code == 200, f"the resource answered {answer.status_code}")
    sent = await story.server.calls("refresh_token") - sent
    expect(sent >= 2, f"the refresh was sent {sent} times: the killed worker had not sent it")
    story.claims.observed(
        Claim.SURVIVED,
        f"worker {pid} killed, {new_pid} took over, generation {after['generation']} after {took:.0f} s; "
        f"sent {sent} times, within the server's grace of {GRACE_S} s",
    )


async def revoke(story: Story) -> None:
    lease = await story.lease()
    expect(
        (await story.server.introspect(lease["access_token"]))["active"] is True, "the token was dead before"
    )
    await story.admin.post(f"/v1/connections/{story.connection_id}/revoke", {"reason": "the demo is over"})
    await _refused(story)
    found = await story.admin.state(story.connection_id, "revoked", 30)
    reply = await story.server.introspect(lease["access_token"])
    expect(reply == {"active": False}, f"introspection says active: {reply['active']}")
    live, spent = await story.server.refresh_tokens()
    expect(live == 0, f"{live} refresh tokens are still live")
    story.claims.observed(
        Claim.REVOKED, f"revocation {found['revocation']}, refresh tokens: {live} live, {spent} dead"
    )


async def _refused(story: Story) -> None:
    """Neither route returns a lease. The route by names may offer a new consent instead."""
    refusals = []
    routes: tuple[tuple[str, dict[str, str]], ...] = (
        (f"/v1/connections/{story.connection_id}/token", {}),
        ("/v1/lease", {"integration": story.integration, "subject": story.subject}),
    )
    for path, body in routes:
        try:
            await story.app.post(path, body)
        except ApiProblem as refused:
            refusals.append(f"{refused.status} {refused.code}")
        else:
            expect(False, f"{path} still handed out a token")
    expect(refusals[0].endswith("connection_revoked"), f"the refusal was {refusals[0]}")
    story.claims.observed(Claim.REFUSED, f"{refusals[0]} by id, {refusals[1]} by names")


def _held(story: Story, what: str, least: int) -> Any:
    async def look() -> bool | None:
        return True if (await story.server.held())[what] >= least else None

    return look


async def _give_up(task: asyncio.Task[Any]) -> None:
    """Cancel the request that caused the refresh; it may have failed when the worker was killed."""
    task.cancel()
    for end in await asyncio.gather(task, return_exceptions=True):
        if isinstance(end, Exception) and not isinstance(end, ApiProblem | httpx2.HTTPError):
            raise end


async def _pass(at: datetime) -> None:
    """Wait until just after this time."""
    await asyncio.sleep(max((at + timedelta(seconds=0.2) - datetime.now(UTC)).total_seconds(), 0))
