"""Every target of the Makefile has help, and lock files hold only hashed pins."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LOCKS = ("build", "demo", "mutations", "server", "test")


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z0-9,-]+\])?==([^\s;]+)", text, flags=re.MULTILINE))


def test_every_target_has_help_which_prints_it() -> None:
    phony = re.search(r"^\.PHONY:(.*)$", MAKEFILE, flags=re.MULTILINE)
    assert phony is not None
    targets = phony.group(1).split()
    assert set(targets) == set(re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, flags=re.MULTILINE))
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == targets


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,-]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("lock", ["build", "demo", "server"])
def test_locks_agree_on_versions(lock: str) -> None:
    everything = pins("test")
    differing = {name for name, version in pins(lock).items() if everything.get(name, version) != version}
    assert not differing


def test_smaller_locks_are_subsets_of_larger_ones() -> None:
    assert pins("server").keys() < pins("demo").keys() < pins("test").keys()


def test_javascript_packages_are_pinned_by_hash_and_from_no_address() -> None:
    lock = json.loads((ROOT / "tests/fakes/oidc/package-lock.json").read_text(encoding="utf-8"))
    packages = {name: facts for name, facts in lock["packages"].items() if name}
    assert packages
    assert {
        name for name, facts in packages.items() if not facts.get("integrity", "").startswith("sha512-")
    } == set()
    assert {name for name, facts in packages.items() if "resolved" in facts} == set()
    assert {name for name, facts in packages.items() if facts.get("hasInstallScript")} == set()
