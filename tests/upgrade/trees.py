"""The code of a commit, in a folder of its own."""

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISED_SINCE = "0019"  # the first migration during which every process goes on


def code_of(revision: str, folder: Path) -> Path:
    """Write the files of a commit into this folder, as `git archive` gives them."""
    archive = _git("archive", "--format=tar", revision)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


# Each run of the newer code has a step that code of before doesn't know, from its next activity on.
_PATCHED = """

_options_before = _options


def _options(activity, request):
    workflow.patched("tests.upgrade")
    return _options_before(activity, request)
"""


def with_changed_workflows(tree: Path) -> Path:
    """The same code with a change of every workflow, as `workflow.patched` makes one."""
    with (tree / "workflows/runs.py").open("a", encoding="utf-8") as runs:
        runs.write(_PATCHED)
    return tree


def releases() -> list[tuple[str, str]]:
    """The release before and the newer one of each schema that promises to work with both, by commits: the
    last one without the schema's migration, and the last one before the next.

    Raises RuntimeError in a clone without them.
    """
    files = sorted((ROOT / "migrations/versions").glob("[0-9]*.py"))
    added = list(dict.fromkeys(_added(file) for file in files if file.name[:4] >= PROMISED_SINCE))
    newer = [*(f"{commit}^" for commit in added[1:]), this_checkout()]
    return [(f"{commit}^", last) for commit, last in zip(added, newer, strict=True)]


def _added(file: Path) -> str:
    commits = _git("log", "--diff-filter=A", "--format=%H", "--", str(file)).decode().split()
    if not commits:
        why = f"no commit of this clone adds {file.name}"
        raise RuntimeError(f"{why}: name the release before with --from, or git fetch --unshallow")
    return commits[-1]


def this_checkout() -> str:
    """A commit of the files that Git knows here, as they are now."""
    return _git("stash", "create").decode().strip() or "HEAD"


def name_of(revision: str) -> str:
    return _git("log", "-1", "--format=%h %s", revision).decode().strip()


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words)}: {done.stderr.decode()}")
    return done.stdout
