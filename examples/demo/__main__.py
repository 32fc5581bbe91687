"""`python -m examples.demo`: exit status 0 only if every claim was observed.

OPEN=1 prints the connect link and waits for a person instead of the scripted subject.
EVERGRANT_DATABASE_URL selects another database than SQLite.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from rich.console import Console
from temporalio.client import Client

from evergrant_server.process import end_with_make, exit_process
from examples.demo import configuring, endings, pipeline, story
from examples.demo.agent import act
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.claims import Claim, Claims
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.interruption import INTERRUPTED, run_interruptible
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
        console.print("[dim]skipped: no app confirms who consents (binding: none), docs/guide/binding.md[/]")
        suffix = secrets.token_hex(3)
        admin = await stack.enter_async_context(EvergrantApi(platform.api, platform.admin_key))
        with console.status("configuring…"):
            app_key = await configuring.configure(admin, server, suffix)
        claims.observed(Claim.CONFIGURED, f"{server.issuer} discovered, example-{suffix}, demo-{suffix}")
        app = await stack.enter_async_context(EvergrantApi(platform.api, app_key))
        run = story.Story(console, claims, server, platform, admin, app, app_key, suffix, by_hand)
        await _steps(run, stack, data, started)
        with console.status("ending everything…"):
            await stack.aclose()


def _keep_logs_of(console: Console, data: Path) -> Callable[..., None]:
    """Copies the logs out of the data folder when a step fails."""

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
    lifetimes = (
        "--access-token-seconds",
        str(story.ACCESS_TOKEN_S),
        "--grace",
        str(configuring.GRACE_S),
        "--tls",
    )
    server = await AuthorizationServer.start(data / "authorization-server", *lifetimes)
    stack.push_async_callback(server.stop)
    started.append(server.pid)
    allowed = ",".join(urlsplit(url).netloc for url in (server.issuer, server.api))
    platform = await EvergrantProcess.start(data / "evergrant", allowed, authorities=server.authorities)

    async def stop() -> None:
        started.extend(platform.pids())  # at the end, because the worker was replaced
        await platform.stop()

    stack.push_async_callback(stop)
    return server, platform


async def _steps(run: story.Story, stack: AsyncExitStack, data: Path, started: list[int]) -> None:
    client = await Client.connect(run.platform.temporal, namespace=run.platform.namespace)
    worker = await pipeline.start_worker(run, data)
    stack.push_async_callback(worker.stop)
    started.append(worker.pid)
    await _step(run, "getting the subject's consent…", story.consent(run), quiet=run.by_hand)
    await _step(run, "calling the protected resource…", story.call_resource(run))
    async with _status(run, "a pipeline signals for its token…"):
        pipeline_id = await pipeline.run_pipeline(run, client)
    await _step(run, "an agent calls through the gateway, and asks a person…", act.play(run, started))
    await _step(run, f"letting the token of {story.ACCESS_TOKEN_S} s expire…", story.let_it_expire(run))
    await _step(run, "letting the next one expire unused…", story.ask_all_at_once(run))
    await _step(run, "killing the worker in the middle of a refresh…", story.kill_the_worker(run))
    await _step(run, "revoking…", story.revoke(run))
    await _step(run, "reading the workflow's history…", endings.show_history(run, client))
    await _step(run, "looking for secrets…", endings.look_for_secrets(run, client, pipeline_id))


async def _step(run: story.Story, doing: str, work: Awaitable[None], *, quiet: bool = False) -> None:
    if quiet:
        return await work
    async with _status(run, doing):
        await work


@asynccontextmanager
async def _status(run: story.Story, doing: str) -> AsyncIterator[None]:
    if not run.console.is_terminal:
        run.console.print(f"[dim]· {doing}[/]")
    with run.console.status(doing):
        yield


def main() -> int:
    console = Console(highlight=False)
    status = run_interruptible(demo(console, by_hand=os.environ.get("OPEN") == "1"))
    if status == INTERRUPTED:
        console.print("stopped; everything that was started has been ended")
    return status


if __name__ == "__main__":
    end_with_make()
    exit_process(main())
