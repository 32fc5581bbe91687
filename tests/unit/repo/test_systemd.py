"""The units of deploy/systemd: systemd reads them, and finds that they may do little."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from evergrant_server.settings import Settings

FOLDER = Path(__file__).parents[3] / "deploy/systemd"
UNITS = sorted(FOLDER.glob("*.service"))
LARGEST_EXPOSURE = "15"  # of 100, as `systemd-analyze security` counts


@pytest.fixture
def analyze() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on PATH (Debian: systemd)")
    return program


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, Path]:
    """The units, with a program of this machine where an installation has its Python."""
    units = {}
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/evergrant/.venv/bin/python", "/bin/sh")
        units[unit.stem] = tmp_path / unit.name
        units[unit.stem].write_text(text, encoding="utf-8")
    return units


def test_systemd_reads_the_units(analyze: str, installed: dict[str, Path]) -> None:
    command = [analyze, "verify", "--man=no", *map(str, installed.values())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.parametrize("unit", [unit.stem for unit in UNITS])
def test_a_unit_is_confined(unit: str, analyze: str, installed: dict[str, Path]) -> None:
    options = ["--offline=true", f"--threshold={LARGEST_EXPOSURE}"]
    command = [analyze, "security", *options, str(installed[unit])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_each_unit_has_a_user_of_the_file_and_none_is_root() -> None:
    made = re.findall(r"^u (\S+) ", (FOLDER / "evergrant.conf").read_text(encoding="utf-8"), re.MULTILINE)
    users = {unit.stem: re.findall(r"^User=(.+)$", unit.read_text(), re.MULTILINE) for unit in UNITS}
    assert users == {
        "evergrant-api": ["evergrant-api"],
        "evergrant-gateway": ["evergrant-gateway"],
        "evergrant-prepare": ["evergrant-worker"],
        "evergrant-worker": ["evergrant-worker"],
    }
    assert sorted(made) == sorted({user for (user,) in users.values()})


def test_every_variable_is_a_setting() -> None:
    known = {f"EVERGRANT_{name.upper()}" for name in Settings.model_fields} | {"OTEL_SERVICE_NAME"}
    for unit in UNITS:
        named = re.findall(r"^Environment=(\w+)=", unit.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= known, unit.name
