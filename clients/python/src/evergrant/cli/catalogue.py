"""`evergrant providers check`: runs the server's own command in a checkout; imports nothing of it."""

import subprocess
import sys
from pathlib import Path

from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.output import Format
from evergrant.errors import BadRequest

_COMMAND = ("-m", "evergrant_server", "providers", "check")


def check_catalogue(checkout: Path = Path(), /, *, options: Options = DEFAULTS) -> None:
    """Check every definition and test vector of the catalogue in a checkout of Evergrant.

    The same as `python -m evergrant_server providers check` there. Exits with 1 when a check fails.
    Reads files only: a running server has read its catalogue at its start.

    Parameters
    ----------
    checkout
        The folder of the checkout; by default the working directory.
    """
    if not (checkout / "evergrant_server" / "__main__.py").is_file():
        raise BadRequest(
            f"{checkout.resolve()} is no checkout of Evergrant",
            code="invalid_request",
            repair="Name one: evergrant providers check FOLDER. To see the catalogue: evergrant providers",
        )
    own = checkout / ".venv" / "bin" / "python"
    python = str(own.absolute()) if own.exists() else sys.executable
    output = ("-o", "json") if options.output is Format.JSON else ()
    sys.stdout.flush()
    ended = subprocess.run([python, *_COMMAND, *output], cwd=checkout, check=False)
    raise SystemExit(ended.returncode)
