"""`make site` builds without a warning (`make soak`).

The short form is tests/unit/repo/test_docs.py: the sidebar, links and anchors.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.soak
def test_the_pages_become_a_site_with_search_and_a_list_for_language_models(tmp_path: Path):
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-c", "docs/site", "-b", "html",
         "-d", str(tmp_path / "doctrees"), ".", str(tmp_path / "html")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    html = tmp_path / "html"
    assert "Getting started" in (html / "index.html").read_text()
    assert "revocation" in (html / "searchindex.js").read_text()
    listed = (html / "llms.txt").read_text()
    assert "(/_sources/docs/guide/getting-started.md.txt)" in listed
    assert (html / "_sources/docs/guide/getting-started.md.txt").is_file()
    assert "/docs/adr/" not in listed, "decisions are for readers of the code"
