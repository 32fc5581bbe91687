"""From the command line to an exit status: 0 done, 1 refused or failed, 2 misused, 130 interrupted."""

import os
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError

from evergrant.cli.commands import build_app
from evergrant.cli.output import show_error
from evergrant.errors import EvergrantError


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Always ends in SystemExit."""
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    try:
        build_app()(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        message = " ".join(str(error).split())
        print(f"evergrant: usage: {message} (See evergrant --help.)", file=sys.stderr)
        return 2
    except EvergrantError as error:
        show_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed the pipe; without this the interpreter fails again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
