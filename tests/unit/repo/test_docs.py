"""Generated pages are current, lists on pages and in `make help` are complete, and links have a target."""

import re
import subprocess
from pathlib import Path

import pytest

from docs.generate import DOCS, PAGES
from evergrant_server.cli.doctor.report import CHECKS
from examples.demo.claims import Claim

ROOT = Path(__file__).parents[3]
MARKDOWN = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "clients/python/README.md"])


@pytest.mark.parametrize("name", sorted(PAGES.keys() - {"security/roles.md"}))  # see tests/security/isolation
def test_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_have_a_target(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "#")):
            continue
        assert (path.parent / target.partition("#")[0]).exists(), f"{path.name} links to {target}"


def test_every_check_of_the_doctor_is_explained() -> None:
    text = (DOCS / "guide/operations.md").read_text(encoding="utf-8")
    explained = re.findall(
        r"^\| ([^|]+) \|", text.partition("## doctor")[2].partition("## ")[0], re.MULTILINE
    )
    names = [name for row in explained[2:] for name in re.split(r"; | and ", row)]
    spread = [
        part.strip() for name in names for part in ([name] if name.startswith("clock") else name.split(","))
    ]
    assert sorted(spread) == sorted(CHECKS)


def test_every_decision_is_in_the_list() -> None:
    folder = DOCS / "adr"
    listed = set(
        re.findall(r"\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    )
    assert listed == {path.name for path in folder.glob("[0-9]*.md")}


def test_readme_lists_what_the_demo_observes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^✓ (.+?) — ", text, flags=re.MULTILINE) == [str(claim) for claim in Claim]


def test_every_target_has_help_which_prints_it() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY:(.*)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    targets = phony.group(1).split()
    assert set(targets) == set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, flags=re.MULTILINE))
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == targets
