"""`evergrant plan` and `evergrant apply`: configuration as a folder of files."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from evergrant.cli.configuration.carry_out import Report, carry_out, tell_plan
from evergrant.cli.configuration.folder import read_folder
from evergrant.cli.configuration.plan import Step
from evergrant.cli.configuration.plan import plan as planned
from evergrant.cli.options import DEFAULTS, Options

CHANGES = 2  # the exit status where there is something to change

Folder = Annotated[Path, Parameter(name=["--folder", "-f"])]
Flag = Annotated[bool, Parameter(negative=())]


def plan(*, folder: Folder, prune: Flag = False, options: Options = DEFAULTS) -> None:
    """Show what `apply` would change. Exits with 0 if nothing, with 2 if something.

    Args:
        folder: The folder with the YAML files, or one file.
        prune: Also what earlier applies made and the folder has no more.
    """
    with options.client() as client:
        steps = planned(client, read_folder(folder), prune=prune)
    _exit_with_plan(steps, options)


def apply(*, folder: Folder, prune: Flag = False, dry_run: Flag = False, options: Options = DEFAULTS) -> None:
    """Create and change what a folder of YAML files describes. Running it again changes nothing more.

    Args:
        folder: The folder with the YAML files, or one file.
        prune: Delete what earlier applies made and the folder has no more.
        dry_run: Change nothing, and show what would change, as `plan` does.
    """
    described = read_folder(folder)
    with options.client() as client:
        steps = planned(client, described, prune=prune)
        if dry_run:
            _exit_with_plan(steps, options)
        for step in steps:
            _require_variables(step)
        carry_out(client, described, steps, Report(options.output))


def _exit_with_plan(steps: list[Step], options: Options) -> None:
    if tell_plan(steps, Report(options.output)):
        sys.exit(CHANGES)
    sys.exit(0)


def _require_variables(step: Step) -> None:
    """Raise InvalidConfiguration for a value whose variable isn't set."""
    for name, variable in step.uncompared.items():
        assert step.described is not None
        raise step.described.source.invalid(f"the variable {variable} isn't set", name)
