"""Generated pages are current, lists on pages and in `make help` are complete, and links have a target.

`make site` itself is built by `tests/e2e/commands/test_site.py` (`make soak`).
"""

import ast
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from docs.generate import DOCS, PAGES
from evergrant_server.cli.doctor.report import CHECKS
from examples.demo.claims import Claim

ROOT = Path(__file__).parents[3]
BESIDE = [
    ROOT / f"{folder}/README.md" for folder in ("examples/pipeline", "clients/typescript", "clients/web")
]
OF_THE_SITE = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *BESIDE])
MARKDOWN = [*OF_THE_SITE, ROOT / "clients/python/README.md"]
FENCED = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,4} (.+)$", re.MULTILINE)


@pytest.mark.parametrize("name", sorted(PAGES.keys() - {"security/roles.md"}))  # see tests/security/isolation
def test_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


def prose(path: Path) -> str:
    return FENCED.sub("", path.read_text(encoding="utf-8"))


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as the site and code hosts make them."""
    words = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in HEADING.findall(prose(path)))
    slugs = Counter[str]()
    names = set[str]()
    for title in words:
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        names.add(f"{slug}-{slugs[slug]}" if slugs[slug] else slug)
        slugs[slug] += 1
    return names


def lost_links(path: Path) -> list[str]:
    """The links inside the repository that lead to no file, or to no heading of a page."""
    lost: list[str] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        if not page.exists() or (anchor and page.suffix == ".md" and anchor not in anchors(page)):
            lost.append(f"{path.relative_to(ROOT)} links to {target}")
    return lost


def test_links_inside_the_repository_have_a_target() -> None:
    assert [link for path in MARKDOWN for link in lost_links(path)] == []


def test_a_link_to_no_heading_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A `name`\n\n[is](#a-name) [isn't](#another) [gone](gone.md)\n```\n# no heading\n```\n")
    assert lost_links(page) == ["page.md links to #another", "page.md links to gone.md"]
    assert anchors(page) == {"a-name"}


def test_every_page_is_once_in_the_sidebar_of_the_site() -> None:
    tree = ast.parse((DOCS / "site/conf.py").read_text(encoding="utf-8"))
    (contents,) = (
        ast.literal_eval(it.value)
        for it in tree.body
        if isinstance(it, ast.AnnAssign) and it.value is not None
    )
    listed = Counter(page for captions in contents.values() for pages in captions.values() for page in pages)
    assert [page for page, times in listed.items() if times > 1] == []
    pages = {str(path.relative_to(ROOT).with_suffix("")) for path in OF_THE_SITE}
    by_pattern = {page for page in pages if re.match(r"docs/providers/.$|docs/adr/[0-9]", page)}
    assert pages - by_pattern - {"README"} == listed.keys() - {"?", "[0-9]*"}


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
