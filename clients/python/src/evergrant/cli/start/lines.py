"""Lines for the reader to copy into the shell."""

import shlex
import sys
from pathlib import Path


def line_to_copy(program: str, *arguments: str) -> str:
    """A command: with the path of this environment's program, if that is in the working folder."""
    own = Path(sys.executable).with_name(program)
    beside = own.is_relative_to(Path.cwd()) and own.exists()
    return shlex.join([str(own.relative_to(Path.cwd())) if beside else program, *arguments])
