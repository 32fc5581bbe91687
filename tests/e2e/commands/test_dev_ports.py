"""`dev` and the ports that Temporal chooses itself: another process may take one before Temporal listens."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from evergrant_server.cli import dev
from evergrant_server.cli.process import ChildProcess
from evergrant_server.core.errors import Failure
from evergrant_server.settings import BadSettings, Settings
from tests.fakes.ports import free_port
from tests.fakes.temporal import program

# It ends as often as `$1` says with the words of Temporal for such a port, and then is Temporal.
_ENDS_FIRST = """
starts=$(cat starts 2>/dev/null || echo 0)
echo $((starts + 1)) > starts
if [ "$starts" -lt "$1" ]; then
    echo "Error: failed listening for HTTP API on 127.0.0.1:40001: bind: address already in use"
    exit 1
fi
shift
exec "$@"
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    port = free_port()
    return Settings(
        data_dir=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'evergrant.db'}",
        port=free_port(),
        temporal_port=port,
        temporal_ui_port=free_port(),
        temporal_address=f"127.0.0.1:{port}",
    )


@pytest.fixture
def starting(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ChildProcess]:
    monkeypatch.chdir(tmp_path)

    def started(times: int) -> ChildProcess:
        temporal = [program("temporal"), "server", "start-dev", "--headless", "--ip", "127.0.0.1"]
        temporal += ["--port", str(settings.temporal_port), "--log-level", "error"]
        return ChildProcess("temporal", ["bash", "-c", _ENDS_FIRST, "it", str(times), *temporal], tmp_path)

    return started


@asynccontextmanager
async def running(process: ChildProcess) -> AsyncIterator[ChildProcess]:
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


async def test_temporal_is_restarted_when_a_port_it_chose_is_taken(
    settings: Settings, starting: Callable[..., ChildProcess], tmp_path: Path
):
    async with running(starting(2)) as temporal:
        await dev.prepare_temporal(settings, temporal)
        assert not temporal.has_exited
    assert (tmp_path / "starts").read_text() == "3\n"


async def test_temporal_is_restarted_a_bounded_number_of_times(
    settings: Settings, starting: Callable[..., ChildProcess], tmp_path: Path
):
    async with running(starting(99)) as temporal:
        with pytest.raises(Failure, match=r"temporal exited with status 1: .*address already in use"):
            await dev.prepare_temporal(settings, temporal)
    assert (tmp_path / "starts").read_text() == "3\n"


async def test_a_port_of_the_settings_that_was_taken_meanwhile_is_named(
    settings: Settings, starting: Callable[..., ChildProcess]
):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", settings.temporal_ui_port))
        listener.listen()
        async with running(starting(99)) as temporal:
            with pytest.raises(BadSettings, match="EVERGRANT_TEMPORAL_UI_PORT"):
                await dev.prepare_temporal(settings, temporal)
