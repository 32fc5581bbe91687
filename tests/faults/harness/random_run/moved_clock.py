"""A clock that jumps for every process of the random run at once, as a machine's would.

`SystemClock.now` is rewritten while it is loaded: it adds the seconds that a file holds.
"""

import ast
import os
import sys

from tests.faults.harness.instrumentation.points import Hook

CLOCK = "evergrant_server.core.clock"
FILE = "FAULTS_CLOCK_FILE"
_NOW = """
seconds = float(open({path!r}, encoding="utf-8").read() or 0)
return datetime.now(UTC) + timedelta(seconds=seconds)
"""


def moved(tree: ast.Module) -> None:
    """The change, for the import hook."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "SystemClock":
            (now,) = [it for it in node.body if isinstance(it, ast.FunctionDef) and it.name == "now"]
            now.body = ast.parse(_NOW.format(path=os.environ[FILE])).body


def install() -> None:
    if FILE in os.environ:
        sys.meta_path.insert(0, Hook({CLOCK: moved}, mark=False))
