"""The platform as `dev` starts it, an app that may lease and connect, and the first steps of most flows."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2
import pytest

from examples.demo.evergrant_api import ApiProblem, EvergrantApi
from examples.demo.forms import read_forms, read_refresh
from examples.demo.platform import EvergrantProcess
from examples.demo.waiting import wait_until
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.warm_dev import start_dev

COMMAND = str(Path(sys.executable).parent / "evergrant")


class Server(Protocol):
    """An authorization server, and its client."""

    issuer: Any
    client_id: Any
    client_secret: Any


def at(server: Server, **more: Any) -> dict[str, Any]:
    """The body that puts an integration of this server; None leaves a field out."""
    body = {
        "provider": "generic",
        "issuer": server.issuer,
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "default_scopes": ["read"],
        **more,
    }
    return {name: value for name, value in body.items() if value is not None}


async def define(admin: EvergrantApi, document: dict[str, Any]) -> None:
    """Propose a definition of the tenant's own, and approve it once it is checked."""
    provider = f"/v1/providers/{document['name']}"
    await admin.post("/v1/providers", {"definition": document})
    for wanted in ("waiting", "active"):

        async def reached(wanted: str = wanted) -> bool | None:
            (found,) = (await admin.get(f"{provider}/versions"))["items"]
            assert found["state"] != "unsound", found["findings"]
            return found["state"] == wanted or None

        await wait_until(reached, f"a version that is {wanted}", PATIENCE_S)
        if wanted == "waiting":
            await admin.post(f"{provider}/approve", {"version": 1, "accept_hosts": True})


async def run(url: str, key: str, *words: str) -> tuple[int | None, str, str]:
    """Run a command of the client's: status, output, and what it complained of."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    env = {**kept, "EVERGRANT_URL": url, "EVERGRANT_API_KEY": key}
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*words, env=env, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert b"Traceback" not in err
    return child.returncode, out.decode(), err.decode()


def refused(code: str, status: int | None = None) -> "pytest.RaisesExc[ApiProblem]":
    """The API answers with this code, and with this status."""
    return pytest.RaisesExc(ApiProblem, check=lambda it: it.code == code and status in (None, it.status))


async def leave(browser: httpx2.AsyncClient, link: str) -> str:
    """Press the button of our page; returns where the browser is led."""
    (form,) = read_forms((await browser.get(link)).text)
    leaving = await browser.post(link, data=form.fields)
    where = read_refresh(leaving.text)
    assert where is not None, leaving.text
    return where


class World:
    """The platform, its admin, and an app."""

    def __init__(self, platform: EvergrantProcess, admin: EvergrantApi, app: EvergrantApi, key: str) -> None:
        self.platform, self.admin, self.api, self.key = platform, admin, app, key

    async def integration(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Once its metadata has been read, and once we are registered if that was asked for."""

        async def written() -> object:
            try:
                return await self.admin.put(f"/v1/integrations/{name}", {"binding": "none", **body})
            except ApiProblem as problem:  # on a busy machine the worker may take longer than the API waits
                if problem.code != "temporal_unavailable":
                    raise
                return None

        await wait_until(written, "the integration", PATIENCE_S)

        async def ready() -> dict[str, Any] | None:
            found = await self.admin.get(f"/v1/integrations/{name}")
            return found if found["state"] != "discovering" else None

        made = await wait_until(ready, "the issuer's metadata", PATIENCE_S)
        assert made["state"] == "ready", made["problem"]
        return made

    async def begin(self, integration: str, subject: str = "sam", **more: Any) -> dict[str, Any]:
        body = {"integration": integration, "subject": subject, **more}
        return await self.api.post("/v1/connections", body)

    async def active(self, connection: dict[str, Any]) -> dict[str, Any]:
        """Wait until it is."""
        return await self.api.state(connection["id"], "active", PATIENCE_S)

    async def refreshed(self, connection: dict[str, Any]) -> dict[str, Any]:
        """Refresh it; a refresh that takes longer than one request waits is asked for again."""
        path = f"/v1/connections/{connection['id']}"
        seen = {"generation": (await self.api.get(path))["generation"]}

        async def ended() -> dict[str, Any] | None:
            try:
                return await self.api.post(f"{path}/refresh", seen)
            except ApiProblem as problem:
                if problem.code != "refresh_pending":
                    raise
                return None

        return await wait_until(ended, "a refresh", PATIENCE_S)

    async def revoked(self, connection: dict[str, Any]) -> dict[str, Any]:
        await self.api.post(f"/v1/connections/{connection['id']}/revoke", {"reason": "the test is over"})
        return await self.api.state(connection["id"], "revoked", PATIENCE_S)

    async def run(self, *words: str) -> tuple[int | None, str, str]:
        return await run(self.platform.api, self.key, *words)


W = TypeVar("W", bound=World)


@asynccontextmanager
async def running(
    kind: type[W],
    data: Path,
    *allowed: Any,
    actions: tuple[str, ...] = ("token", "connect"),
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[W]:
    """A world of this kind. It may call these servers: their issuers, or `host:port`."""
    allow = ",".join(str(it).removeprefix("http://") for it in allowed)
    platform = await start_dev(data, allow, settings)
    try:
        async with EvergrantApi(platform.api, platform.admin_key) as admin:
            await admin.put("/v1/apps/jobs", {})
            permit = {"integration": "*", "actions": list(actions)}
            await admin.put("/v1/apps/jobs/permits/all", permit)
            key = (await admin.post("/v1/apps/jobs/keys"))["key"]
            async with EvergrantApi(platform.api, key) as app:
                yield kind(platform, admin, app, key)
    finally:
        await platform.stop()
