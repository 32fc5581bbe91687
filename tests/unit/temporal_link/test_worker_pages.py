"""A worker's pages: its event loop answers probes, and says when it works."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from evergrant_server import probe
from evergrant_server.settings import BadSettings, Settings, load_settings
from evergrant_server.temporal_link.telemetry import WorkerPages, serve_worker_pages
from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path, metrics_port=free_port())


@pytest_asyncio.fixture
async def pages(settings: Settings) -> AsyncIterator[WorkerPages]:
    async with serve_worker_pages(settings, "worker") as serving:
        yield serving


@pytest_asyncio.fixture
async def http(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    base = f"http://127.0.0.1:{settings.metrics_port}"
    async with httpx2.AsyncClient(base_url=base, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


async def test_it_lives_from_the_start_and_is_ready_once_it_works(
    pages: WorkerPages, http: httpx2.AsyncClient
) -> None:
    assert (await http.get("/livez")).status_code == 200
    assert (await http.get("/readyz")).status_code == 503
    pages.is_ready = True
    assert (await http.get("/readyz?from=probe")).status_code == 200
    assert "target_info" in (await http.get("/metrics")).text
    assert (await http.get("/v1/lease")).status_code == 404


async def test_a_containers_health_check_passes_while_it_works(
    settings: Settings, pages: WorkerPages, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{settings.metrics_port}/readyz"
    assert await asyncio.to_thread(probe.main, url) == 1
    pages.is_ready = True
    assert await asyncio.to_thread(probe.main, url) == 0
    assert await asyncio.to_thread(probe.main, f"http://127.0.0.1:{free_port()}/readyz") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{url}: 503"
    assert "refused" in lines[1]


async def test_what_is_no_request_is_closed_and_keeps_nobody_waiting(
    settings: Settings, pages: WorkerPages, http: httpx2.AsyncClient
) -> None:
    _, silent = await asyncio.open_connection("127.0.0.1", settings.metrics_port)
    for words in (b"\r\n\r\n", b"x" * 200_000):
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.metrics_port)
        writer.write(words)
        with suppress(ConnectionError):  # closed with bytes unread
            assert await reader.read() == b""
        writer.close()
    assert (await http.get("/livez")).text == "ok"
    silent.close()


async def test_a_port_that_is_taken_is_named(settings: Settings, pages: WorkerPages) -> None:
    with pytest.raises(BadSettings, match=f"EVERGRANT_METRICS_PORT: 127.0.0.1:{settings.metrics_port} can't"):
        async with serve_worker_pages(settings, "worker"):
            pass


async def test_without_a_port_nothing_is_served(tmp_path: Path) -> None:
    async with serve_worker_pages(load_settings(data_dir=tmp_path), "worker") as serving:
        assert serving.client_options == {}
