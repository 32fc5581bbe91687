"""One suite for both clients: `caller` is each of them in turn."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
import stamina
from evergrant import AsyncEvergrant, Evergrant

from tests.unit.client.scripted_evergrant import ScriptedEvergrant, scripted_evergrant

SETTINGS = ("URL", "API_KEY", "API_KEY_FILE", "ALLOW_PLAIN_HTTP")


class Caller:
    """Calls a client's method by name and waits; lists what iterates."""

    def __init__(self, client: Evergrant | AsyncEvergrant) -> None:
        self.client = client

    async def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        method = getattr(self.client, name)
        if isinstance(self.client, AsyncEvergrant):
            return await method(*arguments, **named)
        return await asyncio.to_thread(method, *arguments, **named)

    async def list(self, name: str, *arguments: Any, **named: Any) -> list[Any]:
        method = getattr(self.client, name)
        if isinstance(self.client, AsyncEvergrant):
            return [item async for item in method(*arguments, **named)]
        return await asyncio.to_thread(lambda: list(method(*arguments, **named)))


@pytest.fixture(autouse=True)
def no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(f"EVERGRANT_{name}", raising=False)


@pytest.fixture
async def evergrant() -> AsyncIterator[ScriptedEvergrant]:
    async with scripted_evergrant() as server:
        yield server


@pytest.fixture(params=["blocking", "asyncio"])
async def caller(request: pytest.FixtureRequest, evergrant: ScriptedEvergrant) -> AsyncIterator[Caller]:
    deadline = timedelta(seconds=10)
    if request.param == "blocking":
        with Evergrant(evergrant.url, "evg_key_canary", deadline=deadline) as client:
            yield Caller(client)
    else:
        async with AsyncEvergrant(evergrant.url, "evg_key_canary", deadline=deadline) as client:
            yield Caller(client)


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """Retries without waiting, at most three attempts."""
    with stamina.set_testing(True, attempts=3):
        yield
