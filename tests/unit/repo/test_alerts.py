"""Alerts and the dashboard: rules fire when they should, queries name what is exported, and every alert has a
section of the runbook."""

import json
import re
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind
from evergrant_server.store.database import engine
from tests.fakes.mtls.proxies import program

ROOT = Path(__file__).parents[3]
FILES = ROOT / "deploy/helm/evergrant/files"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((FILES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
CASES: list[dict[str, Any]] = yaml.safe_load(
    (ROOT / "deploy/prometheus/alerts.test.yaml").read_text(encoding="utf-8")
)["tests"]
PANELS: list[dict[str, Any]] = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))["panels"]
QUERIES = {
    **{f"alert {name}": rule["expr"] for name, rule in RULES.items()},
    **{
        f"panel {panel['title']}, {target['refId']}": target["expr"]
        for panel in PANELS
        for target in panel.get("targets", ())
    },
}
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
PROMETHEUS = {"up", "ALERTS"}  # its own series
OF_PROMETHEUS = {"job", "instance", "le", "alertname", "alertstate"}  # and labels


def promtool(*arguments: str | Path) -> None:
    binary, env = program("promtool")
    ran = subprocess.run([binary, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_rules_do_what_their_cases_say() -> None:
    promtool("check", "config", "deploy/prometheus/prometheus.yaml")
    promtool("test", "rules", "deploy/prometheus/alerts.test.yaml")


def _firing(case: dict[str, Any]) -> list[set[str]]:
    """Which alerts are expected at each moment of a case."""
    labels = [
        " ".join(sample["labels"] for sample in moment["exp_samples"]) for moment in case["promql_expr_test"]
    ]
    return [set(re.findall(r'alertname="(\w+)"', text)) for text in labels]


def test_every_alert_fires_alone_in_a_case_that_is_quiet_first() -> None:
    fired: set[str] = set()
    for case in CASES:
        moments = _firing(case)
        assert moments[0] == set(), case["name"]
        assert all(len(moment) <= 1 for moment in moments), case["name"]
        fired |= set.union(*moments)
    assert fired == RULES.keys()
    assert any(set.union(*_firing(case)) == set() for case in CASES), "no case is a healthy installation"


def test_a_dashboards_queries_can_be_read(tmp_path: Path) -> None:
    queries = [query.replace("$__rate_interval", "5m") for query in QUERIES.values()]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", file)


@cache
def exported() -> frozenset[str]:
    """The series that a process exports once every instrument has counted."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fakes.platform.every_metric"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(re.findall(r"^(\w+)(?:\{.*\})? \S+$", ran.stdout, re.MULTILINE))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_series_that_are_exported(query: str) -> None:
    named = set(re.findall(r"\b(?:evergrant_\w+|up|ALERTS)\b", _without_labels(QUERIES[query])))
    assert named
    assert named - exported() <= PROMETHEUS


def _without_labels(query: str) -> str:
    query = re.sub(r"\bby \([^)]*\)", "", query)
    return re.sub(r"\{[^}]*\}", "", query)


def test_labels_are_those_of_the_metric() -> None:
    """docs/telemetry.md lists the attributes of each, whose names are compared with the code."""
    page = (ROOT / "docs/telemetry.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(evergrant\.\S+)` \| (?:counter|gauge|histogram) .*\| (.*) \|$", page, re.MULTILINE
    )
    labels = {
        name.replace(".", "_"): {label.replace(".", "_") for label in re.findall(r"`([\w.]+)`", attributes)}
        for name, attributes in rows
    }
    for where, query in QUERIES.items():
        metrics = [name for name in labels if re.search(rf"\b{name}(?:_|\b)", query)]
        allowed = set[str]().union(*(labels[name] for name in metrics)) | OF_PROMETHEUS
        grouped = {label for by in re.findall(r"\bby \(([^)]*)\)", query) for label in re.split(r", *", by)}
        selected = {
            label for group in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)[=!]", group)
        }
        assert grouped | selected <= allowed, where


def _outcomes(alert: str) -> set[str]:
    """The outcomes that the alert looks for."""
    (words,) = set(re.findall(r'evergrant_outcome=~"([\w|]+)"', RULES[alert]["expr"]))
    return set(words.split("|"))


def _codes(*kinds: FailureKind) -> set[str]:
    return {code.value for code, rule in FAILURES.items() if rule.kind in kinds}


def test_an_alert_of_failures_looks_for_every_code_that_its_repairer_mends() -> None:
    passing = {ErrorCode.RATE_LIMITED, ErrorCode.STORE_CONFLICT, ErrorCode.TENANT_ARRIVING}  # it comes again
    assert _outcomes("EvergrantLeasesFail") == _codes(FailureKind.PLATFORM_UNAVAILABLE) - passing
    assert _outcomes("EvergrantLeasesWait") <= _codes(FailureKind.PROVIDER_UNAVAILABLE)
    providers = (FailureKind.PROVIDER_UNAVAILABLE, FailureKind.CLIENT_MISCONFIGURED)
    assert _outcomes("EvergrantRefreshesFail") <= _codes(*providers)
    assert _outcomes("EvergrantGrantsEnd") <= _codes(FailureKind.RECONNECT_NEEDED)


def test_a_full_pool_is_one_of_the_codes_size() -> None:
    sizes = dict(re.findall(r'evergrant_pool="(\w+)"\} >= (\d+)', RULES["EvergrantDatabasePoolFull"]["expr"]))
    pools = {pool.value: sum(size) for pool, size in engine._POOL_SIZES.items()}
    assert sizes
    assert {pool: int(size) for pool, size in sizes.items()}.items() <= pools.items()


def test_every_alert_has_a_section_of_the_runbook_and_names_it() -> None:
    sections = re.split(r"^## (\w+)$", RUNBOOK, flags=re.MULTILINE)[1:]
    assert sections[::2] == list(RULES)
    for name, text in zip(sections[::2], sections[1::2], strict=True):
        meaning, look, repair = re.split(r"^\*\*(?:Look|Do)\*\*: ", text.strip(), flags=re.MULTILINE)
        assert min(len(meaning), len(look), len(repair)) > 20, name
    for name, rule in RULES.items():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (page.rpartition("/docs/")[2], anchor) == ("runbook.html", name.lower())
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_panels_have_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for first, second in combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = any(
            first[at] + first[size] <= second[at] or second[at] + second[size] <= first[at]
            for at, size in (("x", "w"), ("y", "h"))
        )
        assert apart, (first, second)
