"""`make sbom` names every package that production installs, with its version."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.soak
def test_the_bill_of_materials_lists_what_production_runs(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", "requirements/server.txt",
         "--pyproject", "pyproject.toml", "--output-reproducible", "--of", "JSON",
         "-o", tmp_path / "sbom.json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    bill = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    text = (ROOT / "requirements/server.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z0-9,-]+\])?==([^\s;]+)", text, re.MULTILINE))
    assert bill["bomFormat"] == "CycloneDX"
    assert {component["name"]: component["version"] for component in bill["components"]} == pinned
