"""The table of nouns and verbs: its lines are the commands' own; the command that is used is loaded alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from evergrant.cli.main import ALIASES, COMMANDS, NOUNS, build_app, root_help

from tests.unit.client.conftest import Command

CLIENT = Path(__file__).parents[4] / "clients/python/src"
SLOW = {"asyncio", "cyclopts", "dataclasses", "httpx", "httpx2", "pydantic", "rich", "stamina", "temporalio"}
SLOW |= {"yaml"}


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a process has imported at the end of the command."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('\\n'.join(sys.modules), file=sys.stderr))\n"
        f"from evergrant.cli import main\nmain({list(arguments)!r})"
    )
    env = os.environ | {"PYTHONPATH": str(CLIENT)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return set(run.stderr.split())


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_root_help_loads_no_command(arguments: tuple[str, ...]):
    loaded = loaded_by(*arguments)
    ours = {name for name in loaded if name.startswith("evergrant.")}
    assert ours == {"evergrant.cli", "evergrant.cli.main"}
    assert loaded & SLOW == set()


def test_a_command_loads_its_own_noun_alone():
    loaded = loaded_by("webhooks", "--help")
    commands = {name for name in loaded if name.startswith("evergrant.cli.commands.")}
    assert commands == {"evergrant.cli.commands.webhooks"}


def test_the_table_says_what_the_commands_say():
    app = build_app()
    names = {name for name in app.resolved_commands() if not name.startswith("-")}
    assert names == {*NOUNS, *COMMANDS, *ALIASES}
    for name, (_, line) in COMMANDS.items():
        assert app[name].help.partition("\n")[0] == line, name
    for name in names - set(ALIASES):
        assert f"\n  {name} " in root_help()


def test_the_help_of_a_noun_has_the_examples_of_its_verbs(command: Command):
    assert "Example: evergrant webhooks ls" in command("webhooks", "ls", "--help").out
    assert "Example: evergrant token crm alice" in command("lease", "--help").out
