"""`make site` without a warning: every page is in the sidebar, every anchor and link has a target.

Every page is read and its references are resolved; a few are written, which takes longer than all the rest.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WRITTEN = ("README.md", "docs/guide/getting-started.md", "docs/adr/0001-one-workflow-per-connection.md")


def build(builder: str, folder: Path, *pages: str) -> None:
    """Run Sphinx over the pages; those that another builder has read aren't read again."""
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-c", "docs/site", "-b", builder,
         "-d", str(folder / "doctrees"), ".", str(folder / builder), *pages],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr


def test_the_pages_become_a_site_with_search_and_a_list_for_language_models(tmp_path: Path):
    build("dummy", tmp_path)
    html, read = tmp_path / "html", tmp_path / "doctrees"
    for page in read.rglob("*.doctree"):  # a page's source is copied when it is written, and listed then
        source = page.relative_to(read).with_suffix(".md")
        copy = html / "_sources" / f"{source}.txt"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, copy)
    build("html", tmp_path, *WRITTEN)
    assert "Getting started" in (html / "index.html").read_text()
    assert "revocation" in (html / "searchindex.js").read_text()
    listed = (html / "llms.txt").read_text()
    assert "(/_sources/docs/guide/getting-started.md.txt)" in listed
    assert (html / "_sources/docs/guide/getting-started.md.txt").is_file()
    assert "/docs/adr/" not in listed, "decisions are for readers of the code"
