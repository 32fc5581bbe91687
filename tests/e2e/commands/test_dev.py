"""`python -m evergrant_server dev`, as a process: it starts, ends cleanly, and comes back as it was.

Another process may take a port that Temporal chose itself before Temporal listens.
"""

import asyncio
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from evergrant_server.cli.dev.temporal import TemporalStarts, require_free_ports
from evergrant_server.cli.machine import port_problem
from evergrant_server.cli.process import ChildProcess
from evergrant_server.core.errors import Failure
from evergrant_server.settings import BadSettings, Settings
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.platform import EvergrantProcess, still_running
from examples.demo.processes import ROOT, DidNotStart
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.descendants import descendants
from tests.fakes.platform.warm_dev import start_dev
from tests.fakes.ports import free_port
from tests.fakes.temporal import program

PORTS = ("PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT", "GATEWAY_PORT")
UNUSED_ADDRESS = "127.0.0.1:9"


@pytest.mark.soak
async def test_dev_ends_every_process_and_keeps_its_state(tmp_path: Path):
    first = await EvergrantProcess.start(tmp_path, UNUSED_ADDRESS)
    pids = first.pids()
    async with EvergrantApi(first.api, first.admin_key) as admin:
        assert (await admin.get("/readyz"))["ready"] is True
        await admin.put("/v1/apps/crm-sync", {})
    assert await first.stop() == 0
    assert still_running(pids) == []
    assert [name for name in os.listdir(tmp_path) if name.endswith(".pid")] == []
    beginning, *said = first.last_lines()
    assert beginning.startswith("Evergrant starts.")
    for ready in ("the database", "Temporal", "the API", "the worker", "the gateway"):
        assert [line for line in said[:5] if ready in line]
    assert stat.S_IMODE((tmp_path / "dev.env").stat().st_mode) == 0o600

    second = await start_dev(tmp_path, UNUSED_ADDRESS)
    try:
        assert second.admin_key == first.admin_key
        async with EvergrantApi(second.api, second.admin_key) as admin:
            assert (await admin.get("/v1/apps/crm-sync"))["name"] == "crm-sync"
        with pytest.raises(DidNotStart, match=r"EVERGRANT_DATA_DIR: Evergrant runs with .* already"):
            await EvergrantProcess.start(tmp_path, UNUSED_ADDRESS)

        (serving,) = descendants(int((tmp_path / "api.pid").read_text().split()[0]))
        os.kill(int((tmp_path / "api.pid").read_text().split()[0]), signal.SIGKILL)
        await eventually(partial(ended, [serving]))
        dev, *pids = [second.pids()[-1], *second.pids()[:-1]]
        pids += descendants(dev)
        os.kill(dev, signal.SIGKILL)
        await eventually(partial(ended, pids))
    finally:
        await second.stop()


async def ended(pids: list[int]) -> bool:
    return still_running(pids) == []


async def test_ctrl_c_during_the_start_leaves_no_process(tmp_path: Path):
    """The interrupt comes as soon as Temporal runs, while schema and namespace are being prepared."""
    environment = {**os.environ, "EVERGRANT_TEMPORAL_PORT": str(free_port())}
    environment |= {"EVERGRANT_TEMPORAL_UI_PORT": str(free_port()), "EVERGRANT_PORT": str(free_port())}
    environment |= {"EVERGRANT_GATEWAY_PORT": str(free_port())}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "evergrant_server", "dev", "--data-dir", str(tmp_path),
        cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    pid_file = tmp_path / "temporal.pid"
    async with asyncio.timeout(PATIENCE_S):
        while not pid_file.exists() or not pid_file.read_text().strip():
            await asyncio.sleep(0.02)
    temporal = int(pid_file.read_text().split()[0])
    child.send_signal(signal.SIGINT)
    output, _ = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert child.returncode == 0, output.decode()
    assert b"Traceback" not in output
    assert still_running([temporal]) == []


async def test_ports_in_use_are_named_at_once_with_others_that_are_free(tmp_path: Path):
    names = tuple(f"EVERGRANT_{name}" for name in PORTS)
    with ExitStack() as listening:
        ports = {name: free_port() for name in names}
        for name in (names[0], names[2]):
            listener = listening.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            ports[name] = listener.getsockname()[1]
        environment = {**os.environ, **{name: str(port) for name, port in ports.items()}}
        environment.pop("MAKELEVEL", None)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "evergrant_server", "dev", "--data-dir", str(tmp_path),
            cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, complaint = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert child.returncode == 2
    (line,) = complaint.decode().strip().splitlines()
    kept = f"{names[3]}={ports[names[3]]} {names[1]}={ports[names[1]]}"
    rest = r"EVERGRANT_DATA_DIR=\S+ \S+ -m evergrant_server dev$"
    others = rf"others: {names[0]}=(\d+) {kept} {names[2]}=(\d+) {rest}"
    for name in (names[0], names[2]):
        assert f"{name}: 127.0.0.1:{ports[name]} can't be used" in line
    assert (found := re.search(others, line)), line
    assert all(port_problem("127.0.0.1", int(port)) is None for port in found.groups())


def test_two_services_with_one_port_are_refused(settings: Settings):
    alike = settings.__replace__(gateway_port=settings.port)
    with pytest.raises(BadSettings, match=r"EVERGRANT_GATEWAY_PORT: .* is the port of EVERGRANT_PORT too"):
        require_free_ports(alike)


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
        gateway_port=free_port(),
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


async def until_temporal_listens(settings: Settings, temporal: ChildProcess) -> None:
    starts = TemporalStarts(settings, temporal)

    async def listens() -> bool:
        await starts.check()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", settings.temporal_port)) == 0

    try:
        await eventually(listens)
    finally:
        await temporal.stop()


async def test_temporal_is_restarted_when_a_port_it_chose_is_taken(
    settings: Settings, starting: Callable[..., ChildProcess], tmp_path: Path
):
    await until_temporal_listens(settings, starting(2))
    assert (tmp_path / "starts").read_text() == "3\n"


async def test_temporal_is_restarted_a_bounded_number_of_times(
    settings: Settings, starting: Callable[..., ChildProcess], tmp_path: Path
):
    with pytest.raises(Failure, match=r"temporal exited with status 1: .*address already in use"):
        await until_temporal_listens(settings, starting(99))
    assert (tmp_path / "starts").read_text() == "3\n"


async def test_a_port_of_the_settings_that_was_taken_meanwhile_is_named(
    settings: Settings, starting: Callable[..., ChildProcess]
):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", settings.temporal_ui_port))
        listener.listen()
        with pytest.raises(BadSettings, match="EVERGRANT_TEMPORAL_UI_PORT"):
            await until_temporal_listens(settings, starting(99))
