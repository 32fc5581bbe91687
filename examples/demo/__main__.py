"""`python -m examples.demo`: exit status 0 only if every claim was observed.

OPEN=1 prints the connect link and waits for a person instead of consenting by script.
EVERGRANT_DATABASE_URL makes it run on that database instead of SQLite.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

from rich.console import Console
from temporalio.client import Client

from evergrant_server.process_exit import INTERRUPTED, exit_process, run_interruptible
from examples.demo import endings, pipeline, story
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.claims import Claim, Claims
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.platform import EvergrantProcess, still_running


async def demo(console: Console, by_hand: bool) -> int:
    """Run the whole story. Returns the exit status: 0 when every claim was observed, else 1."""
    began = monotonic()
    claims = Claims(console)
    started: list[int] = []
    try:
        await _tell(console, claims, by_hand, started)
    except Exception as error:
        console.print(f"[red]{type(error).__name__}:[/] ", end="")
        console.print(str(error), markup=False)
    left = still_running(started)
    if started and not left:
        claims.observed(Claim.ENDED, f"{len(started)} processes")
    for pid in left:
        console.print(f"[red]process {pid} is still running[/]")
    return 0 if claims.conclude(monotonic() - began) else 1


async def _tell(console: Console, claims: Claims, by_hand: bool, started: list[int]) -> None:
    async with AsyncExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergrant-demo-")))
        stack.push(_keep_logs_of(console, data))
        with console.status("starting the authorization server and Evergrant…"):
            server, platform = await _start(stack, data, started)
        console.print(
            f"[dim]Evergrant {platform.api}   Temporal UI {platform.ui}   {server.issuer}[/]", soft_wrap=True
        )
        suffix = secrets.token_hex(3)
        admin = await stack.enter_async_context(EvergrantApi(platform.api, platform.admin_key))
        with console.status("configuring…"):
            app_key = await story.configure(admin, server, suffix)
        claims.observed(Claim.CONFIGURED, f"{server.issuer} discovered, example-{suffix}, demo-{suffix}")
        app = await stack.enter_async_context(EvergrantApi(platform.api, app_key))
        it = story.Story(console, claims, server, platform, admin, app, app_key, suffix, by_hand)
        await _steps(it, stack, data, started)
        with console.status("ending everything…"):
            await stack.aclose()


def _keep_logs_of(console: Console, data: Path) -> Callable[..., None]:
    """When a step fails, its logs outlive the data folder."""

    def keep(kind: type[BaseException] | None, *_: object) -> None:
        logs = list(data.glob("*/*.log"))
        if kind is None or not issubclass(kind, Exception) or not logs:
            return
        kept = Path(tempfile.mkdtemp(prefix="evergrant-demo-logs-"))
        for log in logs:
            shutil.copy(log, kept)
        console.print(f"the logs are in {kept}")

    return keep


async def _start(
    stack: AsyncExitStack, data: Path, started: list[int]
) -> tuple[AuthorizationServer, EvergrantProcess]:
    lifetimes = ("--access-token-seconds", str(story.ACCESS_TOKEN_S), "--grace", str(story.GRACE_S))
    server = await AuthorizationServer.start(data / "authorization-server", *lifetimes)
    stack.push_async_callback(server.stop)
    started.append(server.pid)
    allowed = server.issuer.removeprefix("http://")
    platform = await EvergrantProcess.start(data / "evergrant", allowed)

    async def stop() -> None:
        started.extend(platform.pids())  # as they are now: the worker was replaced on the way
        await platform.stop()

    stack.push_async_callback(stop)
    return server, platform


async def _steps(it: story.Story, stack: AsyncExitStack, data: Path, started: list[int]) -> None:
    client = await Client.connect(it.platform.temporal, namespace=it.platform.namespace)
    worker = await pipeline.start_worker(it, data)
    stack.push_async_callback(worker.stop)
    started.append(worker.pid)
    await _step(it, "asking a person for consent…", story.consent(it), quiet=it.by_hand)
    await _step(it, "calling the protected resource…", story.call_resource(it))
    async with _status(it, "a pipeline signals for its token…"):
        pipeline_id = await pipeline.run_pipeline(it, client)
    await _step(it, f"letting the token of {story.ACCESS_TOKEN_S} s expire…", story.let_it_expire(it))
    await _step(it, "letting the next one expire, which nobody used…", story.ask_all_at_once(it))
    await _step(it, "killing the worker in the middle of a refresh…", story.kill_the_worker(it))
    await _step(it, "revoking…", story.revoke(it))
    await _step(it, "reading the workflow's history…", endings.show_history(it, client))
    await _step(it, "looking for secrets…", endings.look_for_secrets(it, client, pipeline_id))


async def _step(it: story.Story, doing: str, work: Awaitable[None], *, quiet: bool = False) -> None:
    if quiet:
        return await work
    async with _status(it, doing):
        await work


@asynccontextmanager
async def _status(it: story.Story, doing: str) -> AsyncIterator[None]:
    if not it.console.is_terminal:
        it.console.print(f"[dim]· {doing}[/]")
    with it.console.status(doing):
        yield


def main() -> int:
    console = Console(highlight=False)
    status = run_interruptible(demo(console, by_hand=os.environ.get("OPEN") == "1"))
    if status == INTERRUPTED:
        console.print("stopped; everything that was started has been ended")
    return status


if __name__ == "__main__":
    exit_process(main())
