"""`evergrant providers check`: asks the server's own command in a checkout; nothing of it is imported."""

import subprocess
import sys
from pathlib import Path

from evergrant.cli.options import DEFAULT_OPTIONS, Options
from evergrant.cli.output import Format
from evergrant.errors import BadRequest

_COMMAND = ("-m", "evergrant_server", "providers", "check")


def check_catalogue(checkout: Path = Path(), /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Look at every definition and exchange vector of the catalogue in a checkout of Evergrant.

    The same as `python -m evergrant_server providers check` there. Exits 0 when nothing is
    wrong, 1 otherwise. No server is asked: it has read its catalogue when it started.

    Parameters
    ----------
    checkout
        The folder of the checkout; the working directory without one.
    """
    if not (checkout / "evergrant_server" / "__main__.py").is_file():
        raise BadRequest(
            f"{checkout.resolve()} is no checkout of Evergrant",
            code="invalid_request",
            repair="Name one: evergrant providers check FOLDER. To see the catalogue: evergrant providers",
        )
    own = checkout / ".venv" / "bin" / "python"
    python = str(own.absolute()) if own.exists() else sys.executable
    more = ("-o", "json") if options.output is Format.JSON else ()
    sys.stdout.flush()
    ended = subprocess.run([python, *_COMMAND, *more], cwd=checkout, check=False)
    raise SystemExit(ended.returncode)
