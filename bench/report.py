"""The tables. What each column means is in docs/benchmarks.md."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.disabling import PROCESSES, Disabling
from bench.gateway import CallRate, StreamRun
from bench.greedy import Neighbour
from bench.imports import ImportRate
from bench.leases import LeaseRate, Side
from bench.ledger import LedgerRate
from bench.refreshes import CALLERS, RefreshRate

LEASES = (
    "Leases per second, with permit check and committed audit, against a bare FastAPI POST route and OpenBao"
)
AUDIT = "What the audit log costs: the ledger alone, against one commit for each record"
NEIGHBOURS = "An app beside one with 500 requests open, against itself alone (SQLite)"
DISABLED = "Disabled on PostgreSQL while it leases without a pause: the last lease after the request"
CALLS = "Calls through the gateway, recorded before and after, against direct ones (SQLite)"
STREAMS = "Streams of an hour's server-sent events through one gateway, and its memory"
IMPORTS = "Grants a second of an import: written, installed by a worker, refreshed once each (verified)"
REFRESHES = "Refreshes per second, against the same Temporal server with an empty activity"


_MEASURED = re.compile(r"(<!-- (?:measured|computed) by .* -->\n).*(<!-- end of what was )", re.DOTALL)


def write(page: Path, lines: Sequence[str]) -> None:
    """Put the lines between the page's two comments, in place of those that are there."""
    text = "\n".join(lines)
    page.write_text(_MEASURED.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page.read_text()))


def leases(rows: Iterable[LeaseRate]) -> list[str]:
    header = (
        "store",
        "clients",
        "leases/s",
        "bare/s",
        "ratio",
        "rounds",
        "OpenBao/s",
        "of OpenBao",
        "lease p50 / p99 ms",
        "bare p50 / p99 ms",
        "OpenBao p50 / p99 ms",
    )
    return table(
        LEASES,
        header,
        [
            (
                row.store,
                str(row.clients),
                f"{row.lease.per_second:,.0f}",
                f"{row.bare.per_second:,.0f}",
                f"{row.ratio:.2f}",
                f"{min(row.ratios):.2f} to {max(row.ratios):.2f}",
                "-" if row.openbao is None else f"{row.openbao.per_second:,.0f}",
                "-" if row.of_openbao is None else f"{row.of_openbao:.2f}",
                *(_percentiles(side) for side in (row.lease, row.bare, row.openbao)),
            )
            for row in rows
        ],
    )


def _percentiles(side: Side | None) -> str:
    return "-" if side is None else f"{side.percentile(50):.1f} / {side.percentile(99):.1f}"


def audit(rows: Iterable[LedgerRate], rates: Iterable[LeaseRate]) -> list[str]:
    header = "store", "callers", "records/s", "records a commit", "one by one/s", "ratio", "share of a lease"
    leased = {(rate.store, rate.clients): rate.lease.per_second for rate in rates}
    return table(
        AUDIT,
        header,
        [
            (
                row.store,
                str(row.callers),
                f"{row.ledger:,.0f}",
                f"{row.batch:.1f}",
                f"{row.plain:,.0f}",
                f"{row.ratio:.1f}",
                f"{leased[row.store, row.callers] / row.ledger:.0%}",
            )
            for row in rows
        ],
    )


def neighbours(rows: Iterable[Neighbour]) -> list[str]:
    header = "its clients", "p99 ms alone", "cores busy", "beside", "to alone", "to busy", "greedy leases/s"
    return table(
        NEIGHBOURS,
        header,
        [
            (
                str(row.clients),
                *(" ".join(f"{p99:.1f}" for p99 in rounds) for rounds in (row.quiet, row.busy, row.beside)),
                f"{row.ratio_to(row.quiet):.2f}",
                f"{row.ratio_to(row.busy):.2f}",
                f"{row.greedy_per_second:,.0f}",
            )
            for row in rows
        ],
    )


def calls(rows: Iterable[CallRate]) -> list[str]:
    header = (
        "route",
        "clients",
        "through/s",
        "direct/s",
        "through p50 / p99 ms",
        "direct p50 / p99 ms",
        "added p50 ms",
        "of direct",
    )
    return table(
        CALLS,
        header,
        [
            (
                row.kind,
                str(row.clients),
                *(f"{side.per_second:,.0f}" for side in (row.through, row.direct)),
                *(_percentiles(side) for side in (row.through, row.direct)),
                f"{row.added_ms:.2f}",
                f"{row.through.per_second / row.direct.per_second:.3f}",
            )
            for row in rows
        ],
    )


def streams(row: StreamRun) -> list[str]:
    header = "streams", "events", "events/s", "MiB before", "MiB at a tenth", "MiB at most"
    line = (
        str(row.streams),
        f"{row.events:,}",
        f"{row.events / row.seconds:,.0f}",
        *(f"{memory:.0f}" for memory in (row.before, row.early, row.peak)),
    )
    return table(STREAMS, header, [line])


def disabled(rows: Iterable[Disabling]) -> list[str]:
    header = "disabled", "processes", "leases before", "transaction ms", "last lease ms", "after it"
    return table(
        DISABLED,
        header,
        [
            (
                row.disabled,
                str(PROCESSES),
                f"{row.leases:,}",
                f"{row.took * 1000:.0f}",
                f"{row.effect * 1000:.0f}",
                str(row.late),
            )
            for row in rows
        ],
    )


def refreshes(row: RefreshRate) -> list[str]:
    header = (
        "callers",
        "history events a refresh",
        "refreshes/s",
        "empty/s",
        "ratio",
        "p50 ms",
        "empty p50 ms",
    )
    line = (
        str(CALLERS),
        f"{row.events:.1f}",
        f"{row.refreshes:.0f}",
        f"{row.ceiling:.0f}",
        f"{row.ratio:.2f}",
        f"{row.refresh_ms:.0f}",
        f"{row.ceiling_ms:.0f}",
    )
    return [
        *table(REFRESHES, header, [line]),
        f"{row.done} refreshes, {row.provider_calls} calls at the provider",
    ]


def imports(rows: Iterable[ImportRate]) -> list[str]:
    header = "store", "grants", "written/s", "installed/s", "refreshed", "verified/s"
    return table(
        IMPORTS,
        header,
        [
            (
                row.store,
                str(row.grants),
                f"{row.written:,.0f}",
                f"{row.installed:.0f}",
                str(row.verified_grants),
                f"{row.verified:.1f}",
            )
            for row in rows
        ],
    )


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    lines = [_line(header, widths), _line(["-" * width for width in widths], widths)]
    return [title, "", *lines, *(_line(row, widths) for row in rows), ""]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
