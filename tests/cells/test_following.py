"""Where a client goes whose tenant has moved: to the addresses that its settings name, and nowhere else."""

from datetime import timedelta
from typing import Any

import pytest
from evergrant import AsyncEvergrant, BadRequest
from evergrant.origins import ServerAddress

from tests.fakes.http_server import served

KEY = "evg_key_x"
CELLS = "https://eu.evergrant.test,https://*.evergrant.example, http://127.0.0.1:9"


def address(cells: str = CELLS) -> ServerAddress:
    environ = {"EVERGRANT_URL": "https://us.evergrant.test", "EVERGRANT_CELLS": cells}
    return ServerAddress.from_settings(api_key=KEY, environ=environ)


@pytest.mark.parametrize(
    "url", ["https://eu.evergrant.test", "https://eu.evergrant.test/", "https://b.evergrant.example"]
)
def test_a_cell_of_the_settings_is_followed(url: str):
    assert address().moved_to(url).url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *("https://evil.test", "http://eu.evergrant.test", "https://eu.evergrant.test:8443"),
        *(
            "https://evergrant.example.evil.test",
            "https://evilevergrant.example",
            "https://eu.evergrant.test/x",
        ),
        *("https://evergrant.example", "https://a@eu.evergrant.test", "not a url", "http://127.0.0.1:10"),
    ],
)
def test_any_other_address_gets_no_key(url: str):
    with pytest.raises(BadRequest, match="EVERGRANT_CELLS") as refused:
        address().moved_to(url)
    assert refused.value.code == "tenant_moved"


def test_without_the_setting_nothing_is_followed():
    with pytest.raises(BadRequest, match="EVERGRANT_CELLS"):
        address("").moved_to("https://eu.evergrant.test")


def test_a_cell_is_https():
    with pytest.raises(BadRequest):
        address("http://eu.evergrant.test")


async def test_a_client_follows_once_for_the_process(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    cells: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        where = dict(scope["headers"])[b"host"].decode()
        asked.append(where)
        moved = where != cells[-1].removeprefix("http://")
        problem = f'{{"code": "tenant_moved", "kind": "BadRequest", "moved_to": "{cells[-1]}"}}'
        body = problem if moved else '{"items": [], "next_cursor": null}'
        kind = b"application/problem+json" if moved else b"application/json"
        start = {"type": "http.response.start", "status": 421 if moved else 200}
        await send({**start, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body.encode()})

    async with served(app) as old, served(app) as new:
        cells.append(new)
        monkeypatch.setenv("EVERGRANT_CELLS", new)
        async with AsyncEvergrant(old, KEY, deadline=timedelta(seconds=20)) as client:
            for _ in range(2):
                assert [each async for each in client.apps()] == []
    hosts = [url.removeprefix("http://") for url in (old, new, new)]
    assert asked == hosts
