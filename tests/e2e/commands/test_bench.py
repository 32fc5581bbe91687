"""The benchmarks run and print every row. What the figures are is no business of a test."""

import os
import sys
from pathlib import Path

import pytest

from bench import disabling, report
from bench.bounds import Bounds
from tests.fakes.databases import postgres
from tests.fakes.platform.compose import finished

LIMIT_S = 500  # a bench that hangs, not one that is slow
GATEWAY = (report.CALLS, report.STREAMS)
TITLES = (
    report.LEASES,
    report.AUDIT,
    report.NEIGHBOURS,
    report.DISABLED,
    report.REFRESHES,
    report.IMPORTS,
    *GATEWAY,
)
Tables = dict[str, list[dict[str, str]]]


@pytest.mark.soak
async def test_an_app_that_leases_from_five_processes_gets_nothing_once_it_or_its_tenant_is_disabled(
    tmp_path: Path,
) -> None:
    """The leases that were committed after it."""
    url = await postgres().fresh(migrated=False)
    stopped = await disabling.measure(tmp_path, url, Bounds.quick())
    await postgres().drop(url)
    assert [(row.disabled, row.late) for row in stopped] == [("app", 0), ("tenant", 0)]
    assert all(row.leases > 0 for row in stopped)


@pytest.mark.soak
async def test_a_quick_run_prints_every_row_and_draws_them(tmp_path: Path) -> None:
    picture = tmp_path / "bench.svg"
    command = [sys.executable, "-m", "bench", "--quick", "--picture", str(picture)]
    tables = _tables(await finished(command, os.environ, LIMIT_S), *TITLES)
    drawn = picture.read_text()
    assert all(f">{panel}<" in drawn for panel in ("Leases, 16 clients", "Refreshes, 16 callers")), drawn
    imported = [(row["store"], row["grants"], row["refreshed"]) for row in tables[report.IMPORTS]]
    assert imported == [("SQLite", "100", "100"), ("PostgreSQL", "100", "100")]
    assert [row["after it"] for row in tables[report.DISABLED]] == ["0", "0"]
    databases = [(store, clients) for store in ("SQLite", "PostgreSQL") for clients in ("16", "64")]
    assert [(row["store"], row["clients"]) for row in tables[report.LEASES]] == databases
    assert [(row["store"], row["callers"]) for row in tables[report.AUDIT]] == databases
    assert [row["callers"] for row in tables[report.REFRESHES]] == ["16"]
    assert all(float(row.get("ratio", 1)) > 0 for rows in tables.values() for row in rows)
    assert [row["its clients"] for row in tables[report.NEIGHBOURS]] == ["1", "16"]
    (refresh,) = tables[report.REFRESHES]
    assert float(refresh["history events a refresh"]) > 0


async def test_a_quick_look_at_the_gateway_prints_every_route() -> None:
    command = [sys.executable, "-m", "bench", "gateway", "--quick"]
    tables = _tables(await finished(command, os.environ, LIMIT_S), *GATEWAY)
    routes = [(route, clients) for route in ("proxy", "mcp") for clients in ("1", "16")]
    assert [(row["route"], row["clients"]) for row in tables[report.CALLS]] == routes
    (streams,) = tables[report.STREAMS]
    assert (streams["streams"], streams["events"]) == ("64", "6,400")


@pytest.mark.parametrize("made", ["measured", "computed"])
def test_the_tables_of_a_run_take_the_place_of_the_last_ones(tmp_path: Path, made: str) -> None:
    page, (around, begin, end) = tmp_path / "page.md", _around(made)
    page.write_text(around.format(f"{begin}\n{end}"))
    for lines in (["| old \\1 |", ""], ["| new \\g<1> |", "", "Load."]):
        report.write(page, lines)
        assert page.read_text() == around.format("\n".join((begin, "", *lines, end)))


def _around(made: str) -> tuple[str, str, str]:
    return "# Page\n\n{}\n\n<!-- more -->\n", f"<!-- {made} by `x` -->", f"<!-- end of what was {made} -->"


@pytest.mark.soak
async def test_a_quick_look_at_the_capacity_prints_every_table() -> None:
    command = [sys.executable, "-m", "bench", "capacity", "--quick"]
    printed = await finished(command, os.environ, LIMIT_S)
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert {"100", "refreshes a second, one worker", "1%", "100%"} <= set(rows), printed


def _tables(text: str, *titles: str) -> Tables:
    """Rows by their column names, for each table's title."""
    found: Tables = {}
    for title in titles:
        _, _, rest = text.partition(f"{title}\n\n")
        lines = rest.partition("\n\n")[0].splitlines()
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[title] = [dict(zip(header, row, strict=True)) for row in rows]
    return found
