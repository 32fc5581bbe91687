"""Files that hold a secret of an operator's."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, replacing an existing one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
