"""The API and a worker as processes of their own, on a real Temporal server, with their logs kept.

    async with running_platform(folder, temporal_address, allow=(idp.allowance,), env={...}) as platform:
        async with platform.client() as http: ...

Keys lie beside the data folder, not in it, so that the data folder can be searched for them.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.compose import ROOT, finished
from tests.fakes.platform.warm import WarmProcess, warm_output
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider


@dataclass
class RunningPlatform:
    url: str
    worker_metrics: str
    admin_key: str
    key_file: Path
    data: Path
    logs: Path
    temporal: str
    env: dict[str, str]
    is_warm: bool
    children: dict[str, asyncio.subprocess.Process | WarmProcess] = field(default_factory=dict)

    def client(self, **headers: str) -> httpx2.AsyncClient:
        """A caller with the admin's key."""
        given = {"Authorization": f"Bearer {self.admin_key}", **headers}
        return httpx2.AsyncClient(base_url=self.url, headers=given, trust_env=False, timeout=PATIENCE_S)

    def caller(self, key: str) -> httpx2.AsyncClient:
        return self.client(Authorization=f"Bearer {key}")

    async def app(self, name: str, integration: str, *actions: str) -> str:
        """An app with one permit; returns its key."""
        async with self.client() as admin:
            await _done(admin.put(f"/v1/apps/{name}", json={}))
            key = await _done(admin.post(f"/v1/apps/{name}/keys", json={}))
            permit = {"integration": integration, "subjects": ["*"], "actions": list(actions)}
            await _done(admin.put(f"/v1/apps/{name}/permits/only", json=permit))
        return key["key"]

    async def integration(self, name: str, idp: ScriptedProvider, **more: Any) -> None:
        async with self.client() as admin:
            body = {
                "provider": "generic",
                "issuer": idp.issuer,
                "client_id": idp.client_id,
                "client_secret": idp.client_secret,
                "default_scopes": ["read"],
                "binding": "none",
                **more,
            }
            url = f"/v1/integrations/{name}"
            # 503: on a busy machine a worker needs longer for the issuer's metadata than a request waits
            answer = await eventually(lambda: admin.put(url, json=body), lambda it: it.status_code != 503)
            assert answer.is_success, answer.text

    def log(self, name: str) -> bytes:
        return (self.logs / f"{name}.log").read_bytes()

    async def start(self, name: str, *command: str, **env: str) -> None:
        """Start a process of this checkout; its output goes to its log."""
        module, *arguments = command
        path = self.logs / f"{name}.log"
        if self.is_warm and module == "evergrant_server":
            self.children[name] = await WarmProcess.start(arguments, {**self.env, **env}, path, path)
            return
        with path.open("ab") as log:
            self.children[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *command, cwd=ROOT, env={**self.env, **env}, stdout=log, stderr=log,
                stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    async def command(self, *arguments: str) -> str:
        """Run a server's command to its end; what it said."""
        if not self.is_warm:
            return await finished([sys.executable, "-m", "evergrant_server", *arguments], self.env, 1800)
        return await warm_output([*arguments], self.env)

    async def until_said(self, name: str, words: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while words.encode() not in self.log(name):
                if self.children[name].returncode is not None:
                    raise RuntimeError(f"{name} ended:\n{self.log(name).decode(errors='replace')[-3000:]}")
                await asyncio.sleep(0.05)

    async def until_ready(self) -> None:
        await self.until_said("worker", "worker ready")
        async with asyncio.timeout(PATIENCE_S), self.client() as http:
            while True:
                with suppress(httpx2.TransportError):  # it isn't listening yet
                    if (await http.get("/readyz")).status_code == 200:
                        return
                if self.children["api"].returncode is not None:
                    raise RuntimeError(f"the API ended:\n{self.log('api').decode(errors='replace')[-3000:]}")
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End every process by its pid and wait, so that its exporters have sent what they held."""
        for child in self.children.values():
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children.values():
            try:
                await asyncio.wait_for(child.wait(), PATIENCE_S)
            except TimeoutError:
                child.kill()
                await child.wait()


async def _done(call: Awaitable[httpx2.Response]) -> Any:
    answer = await call
    assert answer.is_success, answer.text
    return answer.json()


@asynccontextmanager
async def running_platform(
    folder: Path,
    temporal_address: str,
    *,
    allow: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    port: int | None = None,
) -> AsyncIterator[RunningPlatform]:
    """Keys, schema, namespace, an admin key, one API, on this port, and one worker.

    With a PYTHONPATH in `env` API and worker import by themselves.
    """
    port, metrics_port = port or free_port(), free_port()
    data, logs = folder / "data", folder / "logs"
    data.mkdir(mode=0o700), logs.mkdir()
    key_file = folder / "keys.json"
    settings = {
        "EVERGRANT_DATA_DIR": str(data),
        "EVERGRANT_KEY_FILE": str(key_file),
        "EVERGRANT_PORT": str(port),
        "EVERGRANT_TEMPORAL_ADDRESS": temporal_address,
        "EVERGRANT_TEMPORAL_TASK_QUEUE": f"evergrant-{port}",
        "EVERGRANT_EGRESS_ALLOW": ",".join(allow),
        "EVERGRANT_RELAY_INTERVAL": "PT0.2S",
        "EVERGRANT_ALLOW_UNBOUND_CONSENT": "true",
    }
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("EVERGRANT_", "OTEL_"))
    }
    clean |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python/src'}", "PYTHONUNBUFFERED": "1"}
    platform = RunningPlatform(
        url=f"http://127.0.0.1:{port}",
        worker_metrics=f"http://127.0.0.1:{metrics_port}/metrics",
        admin_key="",
        key_file=key_file,
        data=data,
        logs=logs,
        temporal=temporal_address,
        env={**clean, **settings, **(env or {})},
        is_warm="PYTHONPATH" not in (env or {}),
    )
    await platform.command("keys", "create")
    await platform.command("db", "upgrade")
    await platform.command("keys", "bootstrap", "--out", str(folder / "admin.key"))
    platform.admin_key = (folder / "admin.key").read_text().strip()
    try:
        await platform.start("worker", "evergrant_server", "worker", EVERGRANT_METRICS_PORT=str(metrics_port))
        await platform.start("api", "evergrant_server", "serve")
        await platform.until_ready()
        yield platform
    finally:
        await platform.stop()
