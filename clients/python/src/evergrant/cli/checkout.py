"""`evergrant providers check`, `try` and `drift`: the server's own commands, in a checkout of Evergrant.

They run in a process of their own; nothing of the server is imported.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

from cyclopts import Parameter

from evergrant.cli.integrations import providers
from evergrant.cli.output import DEFAULTS, Options
from evergrant.cli.show.tables import Format
from evergrant.errors import BadRequest

_MODULE = ("-P", "-m", "evergrant_server", "providers")  # -P: not that of the working directory
_Arguments = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]


@providers.command(name="check")
def check_catalogue(checkout: Path = Path(), /, *, options: Options = DEFAULTS) -> None:
    """Check every definition and test vector of the catalogue in a checkout of Evergrant.

    The same as `python -m evergrant_server providers check` there. Exits with 1 when a check fails.
    Reads files only: a running server has read its catalogue at its start.

    Args:
        checkout: The folder of the checkout; by default the working directory.
    """
    _run(checkout, "check", *(("-o", "json") if options.output is not Format.TABLE else ()))


@providers.command(name="try", help_flags=[])
def try_provider(*arguments: _Arguments, checkout: Path = Path()) -> None:
    """Try a provider with your own client: consent, refresh, refusals, revocation. --help lists the options.

    The same as `python -m evergrant_server providers try` in a checkout of Evergrant.

    Args:
        checkout: The folder of the checkout; by default the working directory.
    """
    _run(checkout, "try", *arguments)


@providers.command(name="drift", help_flags=[])
def compare_catalogue(*arguments: _Arguments, checkout: Path = Path()) -> None:
    """Compare the catalogue with a folder of other catalogues. --help lists the options.

    The same as `python -m evergrant_server providers drift` in a checkout of Evergrant.

    Args:
        checkout: The folder of the checkout; by default the working directory.
    """
    _run(checkout, "drift", *arguments)


def _run(checkout: Path, command: str, *arguments: str) -> None:
    """Run a command of the checkout, with the files that the user names as they are seen from here."""
    root = checkout.resolve()
    if not (root / "evergrant_server" / "__main__.py").is_file():
        raise BadRequest(
            f"{root} is no checkout of Evergrant",
            code="invalid_request",
            repair=f"Name one: evergrant providers {command} {_NAMING[command]}. To see the catalogue: "
            "evergrant providers",
        )
    own = root / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    environment = {**os.environ, "PYTHONPATH": str(root)}
    sys.stdout.flush()
    # Ctrl-C reaches both processes: the command revokes what it obtained, and this one waits for it
    before = signal.signal(signal.SIGINT, _wait_on)
    try:
        ended = subprocess.run([python, *_MODULE, command, *arguments], env=environment, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    raise SystemExit(ended.returncode)


_NAMING = {"check": "FOLDER", "try": "--checkout FOLDER NAME", "drift": "--checkout FOLDER FILES"}


def _wait_on(number: int, frame: FrameType | None) -> None: ...
