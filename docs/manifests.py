"""Renders the chart as deploy/kubernetes has it: one file for each template, with the values of an example.

    python docs/manifests.py

A test renders them again and compares.
"""

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy/helm/evergrant"
FOLDER = ROOT / "deploy/kubernetes"
NOTE = "# Rendered by `make manifests` from deploy/helm/evergrant: for a lasting change, change the chart.\n"
_DOCUMENT = re.compile(r"^---\n# Source: evergrant/templates/(\S+)\n", re.MULTILINE)


def helm() -> str | None:
    """The program: what requirements/helm.sh has unpacked, or the one on PATH."""
    unpacked = Path(sys.prefix) / "helm/helm"
    return str(unpacked) if unpacked.exists() else shutil.which("helm")


def rendered(program: str, *options: str) -> str:
    """What `helm template` makes of the chart."""
    command = [program, "template", "evergrant", str(CHART), "--namespace", "evergrant", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def manifests(program: str) -> dict[str, str]:
    """The plain manifests by the names of their files."""
    _, *parts = _DOCUMENT.split(rendered(program, "--set", "plain=true"))
    documents: dict[str, list[str]] = defaultdict(list)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        documents[name].append("\n".join(line.rstrip() for line in text.strip().splitlines()))
    return {name: NOTE + "\n---\n".join(texts) + "\n" for name, texts in documents.items()}


if __name__ == "__main__":
    program = helm()
    if program is None:
        sys.exit("no helm: bash requirements/helm.sh VENV, or put it on PATH")
    for name, text in manifests(program).items():
        (FOLDER / name).write_text(text, encoding="utf-8")
