"""Where mistakes are made: `dev` with a provider, a newcomer's folder; and what a screen said."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import httpx2

from examples.demo.evergrant_api import EvergrantApi
from examples.demo.platform import EvergrantProcess
from tests.e2e.world import leave
from tests.fakes.platform.warm_dev import start_dev
from tests.fakes.providers.scripted_provider import Family, ScriptedProvider

ROOT = Path(__file__).parents[3]
COMMAND = str(Path(sys.executable).parent / "evergrant")
LIMIT_S = 120.0


class Provider(ScriptedProvider):
    """Sends browsers back with this error, or with a code for this scope."""

    refusal: str | None = None
    granted: str | None = None
    lifetime_s = 3600

    def _issue(self, family: Family) -> dict[str, Any]:
        self._expires_in = self.lifetime_s
        return super()._issue(family)

    def _authorize(self, params: dict[str, str]) -> str:
        if self.refusal is not None:
            words = {"error": self.refusal, "error_description": "the client may not have scope write"}
            words |= {"state": params["state"], "iss": self.issuer}
            return f"{params['redirect_uri']}?{urlencode(words)}"
        if self.granted is not None:
            params = {**params, "scope": self.granted}
        return super()._authorize(params)


@dataclass
class Place:
    """The installation, a folder as a newcomer has it, and the provider."""

    platform: EvergrantProcess
    data: Path
    folder: Path
    idp: Provider
    admin: EvergrantApi
    env: dict[str, str] = field(default_factory=dict[str, str])

    async def say(self, *words: str, env: Mapping[str, str] | None = None, server: bool = False) -> str:
        """The screen after a command of the client's, or of the server's."""
        program = [sys.executable, "-m", "evergrant_server"] if server else [COMMAND]
        return await screen([*program, *words], self.folder, {**self.env, **(env or {})})

    async def connect(self, *words: str) -> str:
        """The screen of `evergrant connect --wait`, whose subject consents in a browser."""
        link = self.folder / "link"
        link.unlink(missing_ok=True)
        key = ("--api-key-file", "first-app.key")
        connecting = asyncio.create_task(
            self.say("connect", "--open", "--wait", "--timeout", "60", *words, *key)
        )
        while not link.exists() and not connecting.done():
            await asyncio.sleep(0.05)
        if link.exists():
            async with httpx2.AsyncClient(follow_redirects=True, trust_env=False, timeout=60) as browser:
                await browser.get(await leave(browser, link.read_text().strip()))
        return await connecting

    async def secret(self, text: str) -> str:
        file = self.folder / "typed-secret"
        file.write_text(text)
        return str(file)

    async def integration(self, name: str, **members: object) -> None:
        body = {"provider": "generic", "issuer": self.idp.issuer, "client_id": self.idp.client_id}
        body |= {"client_secret": self.idp.client_secret, "default_scopes": ["read"], **members}
        await self.admin.put(f"/v1/integrations/{name}", body)
        permit = {"integration": name, "actions": ["token", "connect", "proxy"]}
        await self.admin.put(f"/v1/apps/first-app/permits/{name}", permit)

    def pid(self, name: str) -> int:
        return int((self.data / f"{name}.pid").read_text().split()[0])


async def screen(command: list[str], folder: Path, env: Mapping[str, str]) -> str:
    pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=env, stdin=none, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(child.communicate(), LIMIT_S)
    except TimeoutError:
        child.kill()
        return "(no end)"
    return out.decode()


@asynccontextmanager
async def placed() -> AsyncIterator[Place]:
    """`dev` with a provider that it may reach, and what `init` makes."""
    with TemporaryDirectory(prefix="evergrant-mistakes-") as name:
        folder, data = Path(name) / "folder", Path(name) / "data"
        folder.mkdir()
        async with Provider() as idp:
            platform = await start_dev(data, idp.allowance)
            try:
                async with EvergrantApi(platform.api, platform.admin_key) as admin:
                    yield await _furnished(Place(platform, data, folder, idp, admin))
            finally:
                await platform.stop()


async def _furnished(place: Place) -> Place:
    folder, platform = place.folder, place.platform
    browser = folder / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {folder}/link.new && mv {folder}/link.new {folder}/link\n')
    browser.chmod(0o700)
    own = f"EVERGRANT_URL={platform.api}\nEVERGRANT_GATEWAY_URL={platform.gateway}\n"
    for file, text in {
        "admin.key": platform.admin_key,
        "evergrant.env": own + "EVERGRANT_API_KEY_FILE=admin.key\n",
    }.items():
        (folder / file).write_text(text)
        (folder / file).chmod(0o600)
    kept = {
        name: text for name, text in os.environ.items() if not name.startswith(("EVERGRANT_", "TEMPORAL_"))
    }
    path = f"{ROOT}:{ROOT / 'clients/python/src'}"
    place.env |= kept | {"BROWSER": f"{browser} %s", "PYTHONPATH": path, "COLUMNS": "200"}
    secret = await place.secret(place.idp.client_secret)
    made = await place.say(
        *("init", "--provider", place.idp.issuer, "--client-id", place.idp.client_id, "--subject", "alice"),
        *("--client-secret-file", secret, "--scope", "read", "--name", "crm"),
    )
    assert "Made the integration crm" in made, made
    return place


Make = Callable[[Place], Awaitable[str]]


@dataclass(frozen=True)
class Mistake:
    """What is done wrong, and what the first screen has to have of the repair (all of these)."""

    name: str
    make: Make
    repair: tuple[str, ...]
    quick: bool = True  # a part of the short form


MISTAKES: list[Mistake] = []


def mistake(name: str, *repair: str, quick: bool = True) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        MISTAKES.append(Mistake(name, make, repair, quick))
        return make

    return register


def has_repair(mistake: Mistake, screen_text: str) -> bool:
    one_line = " ".join(screen_text.split())
    return all(re.search(part, one_line, re.IGNORECASE) for part in mistake.repair)


async def made(place: Place, mistakes: list[Mistake]) -> list[Mistake]:
    """Make each, print what the first screen said, and return those whose screen has no repair."""
    silent: list[Mistake] = []
    for mistake in mistakes:
        try:
            text = await mistake.make(place)
        except Exception as error:  # a mistake that can't be made is none that is repaired
            text = f"(not made: {type(error).__name__}: {error})"
        repaired = has_repair(mistake, text)
        silent += [] if repaired else [mistake]
        print(f"{'✓' if repaired else '✗'} {mistake.name}")
        print("".join(f"    {line}\n" for line in text.strip().splitlines()[-24:]), flush=True)
    return silent
