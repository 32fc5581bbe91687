"""`pytest --at-once 4`: what the tests of the forks report is the run's, and a fork that dies fails it."""

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]
CONFTEST = "from tests.side_by_side import pytest_addoption, pytest_runtestloop\n"
TESTS = """
import os, pytest

@pytest.fixture(scope="module")
def once():
    yield os.getpid()
    print("the module has ended")

def test_passes(once):
    assert os.getppid() == {parent}
{more}
"""
FAILS = """
@pytest.mark.parametrize("number", [1, 2])
def test_fails(once, number):
    print("words of", once == os.getpid())
    assert number == 2

def test_is_skipped():
    pytest.skip("not here")
"""
DIES = """
def test_dies():
    os._exit(7)
"""
WAITS = """
def test_waits():
    import pathlib, time
    pathlib.Path("waits").write_text(str(os.getpid()))
    time.sleep(600)
"""


def run(folder: Path, *more: str) -> subprocess.Popen[str]:
    """pytest with a file for each of these pieces."""
    (folder / "conftest.py").write_text(CONFTEST)
    for number, piece in enumerate(more):
        text = TESTS.replace("{parent}", "int(open('parent').read())").replace("{more}", piece)
        (folder / f"test_{number}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "--at-once", "2", "-p", "no:cacheprovider", "-rfs", "-q"]
    child = subprocess.Popen(
        [*command, "--confcutdir", str(folder), "--rootdir", str(folder), "-c", os.devnull, "."],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's job may ignore it
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    (folder / "parent").write_text(str(child.pid))
    return child


def test_reports_of_all_forks_are_the_runs(tmp_path: Path) -> None:
    child = run(tmp_path, FAILS, "", "")
    said, _ = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 1, said
    assert "1 failed, 4 passed, 1 skipped" in said
    assert "words of True" in said
    assert "not here" in said
    assert "the module has ended" not in said.partition("words of True")[0]


def test_a_fork_that_dies_fails_the_run_and_is_named(tmp_path: Path) -> None:
    child = run(tmp_path, DIES, "")
    said, _ = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 1, said
    assert re.search(r"_ test_dies _+\nthe process of this test ended with status 7", said), said
    assert "FAILED test_0.py::test_dies" in said


def test_an_interrupt_ends_the_forks(tmp_path: Path) -> None:
    child = run(tmp_path, WAITS, "")
    assert child.stdout is not None
    while not (tmp_path / "waits").exists() or not (tmp_path / "waits").read_text():
        assert child.poll() is None, child.stdout.read()
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 2, said
    assert not Path("/proc", (tmp_path / "waits").read_text()).exists()
