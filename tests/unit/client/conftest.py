"""One suite for both clients: `caller` is each of them in turn."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import stamina
from evergrant import AsyncEvergrant, Evergrant
from evergrant.cli import main

from tests.fakes.patience import PATIENCE_S
from tests.unit.client.scripted_evergrant import ScriptedEvergrant

SETTINGS = (
    "URL",
    "API_KEY",
    "API_KEY_FILE",
    "ALLOW_PLAIN_HTTP",
    "APP_ID",
    "PRIVATE_KEY_FILE",
    "WORKLOAD_TOKEN_FILE",
    "ISSUER",
    "CERTIFICATE_FILE",
    "CERTIFICATE_KEY_FILE",
)


class Caller:
    """Calls a client's method by name and waits; `list` reads an iterator to its end."""

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
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")  # of whose `evergrant login`


@pytest.fixture
def evergrant() -> Iterator[ScriptedEvergrant]:
    with ScriptedEvergrant().running() as server:
        yield server


@pytest.fixture
def client_arguments() -> dict[str, Any]:
    """Further arguments of `caller`'s client; a test module may override this fixture."""
    return {"deadline": timedelta(seconds=PATIENCE_S)}


@pytest.fixture(params=["blocking", "asyncio"])
async def caller(
    request: pytest.FixtureRequest, evergrant: ScriptedEvergrant, client_arguments: dict[str, Any]
) -> AsyncIterator[Caller]:
    if request.param == "blocking":
        with Evergrant(evergrant.url, "evg_key_canary", **client_arguments) as client:
            yield Caller(client)
    else:
        async with AsyncEvergrant(evergrant.url, "evg_key_canary", **client_arguments) as client:
            yield Caller(client)


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """Retries without waiting, at most three attempts."""
    with stamina.set_testing(True, attempts=3):
        yield


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(
    evergrant: ScriptedEvergrant, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("EVERGRANT_URL", evergrant.url)
    monkeypatch.setenv("EVERGRANT_API_KEY", "evg_canary")

    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capfd.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run
