"""What several processes of one test run need once on a machine is made by one of them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]
# Where `useradd` of this process makes users: the lines of a file.
MAKES_A_USER = """
import pwd, sys
from tests.fakes.postgresql.program import make_system_user

def getpwnam(name):
    with open(sys.argv[1]) as users:
        if name not in users.read().split():
            raise KeyError(name)

pwd.getpwnam = getpwnam
sys.stdin.read()
make_system_user("someone")
getpwnam("someone")
"""
# Like the real one it looks first and writes later.
USERADD = """#!/bin/sh
if grep -q "$3" "{users}"; then exit 9; fi
sleep 0.5
echo "$3" >> "{users}"
"""


def test_processes_that_start_postgresql_at_once_make_its_system_user_once(tmp_path: Path):
    users, useradd = tmp_path / "users", tmp_path / "useradd"
    users.touch()
    useradd.write_text(USERADD.format(users=users))
    useradd.chmod(0o755)
    command = [sys.executable, "-c", MAKES_A_USER, str(users)]
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=env, stdin=subprocess.PIPE) for _ in range(5)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()  # go on, all of you
    assert [process.wait(PATIENCE_S) for process in processes] == [0] * 5
    assert users.read_text() == "someone\n"
