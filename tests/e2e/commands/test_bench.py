"""The benchmarks run and print every row. What the figures are is no business of a test."""

import os
import sys

import pytest
import pytest_asyncio

from bench import report
from tests.fakes.platform.compose import finished

LIMIT_S = 500  # a bench that hangs, not one that is slow
GATEWAY = (report.CALLS, report.STREAMS)
pytestmark = pytest.mark.asyncio(loop_scope="module")  # one run for both: it takes half a minute
Tables = dict[str, list[dict[str, str]]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tables() -> Tables:
    return _tables(await finished([sys.executable, "-m", "bench", "--quick"], os.environ, LIMIT_S))


async def test_an_app_that_leases_from_five_processes_gets_nothing_once_it_or_its_tenant_is_disabled(
    tables: Tables,
) -> None:
    """The leases that were committed after it."""
    assert [row["after it"] for row in tables[report.DISABLED]] == ["0", "0"]


async def test_a_quick_run_prints_every_row(tables: Tables) -> None:
    databases = [(store, clients) for store in ("SQLite", "PostgreSQL") for clients in ("16", "64")]
    assert [(row["store"], row["clients"]) for row in tables[report.LEASES]] == databases
    assert [(row["store"], row["callers"]) for row in tables[report.AUDIT]] == databases
    assert [row["callers"] for row in tables[report.REFRESHES]] == ["16"]
    assert all(float(row.get("ratio", 1)) > 0 for rows in tables.values() for row in rows)
    assert [row["its clients"] for row in tables[report.NEIGHBOURS]] == ["1", "16"]
    routes = [(route, clients) for route in ("proxy", "mcp") for clients in ("1", "16")]
    assert [(row["route"], row["clients"]) for row in tables[report.CALLS]] == routes
    (streams,) = tables[report.STREAMS]
    assert (streams["streams"], streams["events"]) == ("64", "6,400")
    (refresh,) = tables[report.REFRESHES]
    assert float(refresh["history events a refresh"]) > 0


def _tables(text: str) -> Tables:
    """Rows by their column names, for each table's title."""
    found: Tables = {}
    for title in (
        report.LEASES,
        report.AUDIT,
        report.NEIGHBOURS,
        report.DISABLED,
        report.REFRESHES,
        *GATEWAY,
    ):
        _, _, rest = text.partition(f"{title}\n\n")
        lines = rest.partition("\n\n")[0].splitlines()
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[title] = [dict(zip(header, row, strict=True)) for row in rows]
    return found
