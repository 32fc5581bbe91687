"""A virtual environment for each framework: some of them can't stand beside each other, or beside ours."""

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements" / "frameworks"
_UV = Path(sys.executable).parent / "uv"
# CrewAI connects within `asyncio.wait_for`, before 3.12 a task of its own, and can't disconnect in another
_PYTHONS = {"crewai": ">=3.12"}


@dataclass(frozen=True)
class Environment:
    """One framework's, from its lock file. `seconds` and `megabytes` are of its installation."""

    name: str
    python: Path
    seconds: float
    megabytes: float


def names() -> list[str]:
    """The examples, by their lock files."""
    return sorted(path.stem for path in LOCKS.glob("*.txt"))


async def install(name: str, folder: Path) -> Environment:
    """Make the environment of the example `with_<name>` in `folder`, every file checked against its hash."""
    place, began = folder / name, time.monotonic()
    version = _PYTHONS.get(name, sys.executable)
    await _uv("venv", "--quiet", "--clear", "--no-python-downloads", "--python", version, str(place))
    python = place / "bin" / "python"
    lock = str(LOCKS / f"{name}.txt")
    await _uv(
        *("pip", "sync", "--quiet", "--system-certs", "--require-hashes", "--only-binary", ":all:"),
        *("--python", str(python), lock),
    )
    took, size = time.monotonic() - began, sum(it.stat().st_size for it in place.rglob("*") if it.is_file())
    return Environment(name, python, took, size / 1e6)


async def _uv(*arguments: str) -> None:
    child = await asyncio.create_subprocess_exec(str(_UV), *arguments, cwd=ROOT)
    if await child.wait():
        raise SystemExit(f"uv {' '.join(arguments)} failed")
