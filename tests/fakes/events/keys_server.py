"""A transmitter's JWK set over HTTP, for a worker to read."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.fakes.events.transmitter import Transmitter
from tests.fakes.http_server import served


@dataclass
class KeysServer:
    url: str = ""
    reads: int = 0

    @property
    def allowance(self) -> str:
        return urlsplit(self.url).netloc


@asynccontextmanager
async def keys_server(transmitter: Transmitter) -> AsyncIterator[KeysServer]:
    here = KeysServer()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        here.reads += 1
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(transmitter.jwks).encode()})

    async with served(app) as url:
        here.url = f"{url}/keys"
        yield here
