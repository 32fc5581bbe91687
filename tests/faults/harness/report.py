"""What a walk of the table and a run print at their end."""

from collections import Counter
from statistics import median

from tests.faults.harness.random_run.plan import told
from tests.faults.harness.random_run.run import RunResult
from tests.faults.harness.table.judge import Verdict
from tests.faults.harness.table.table_run import TableResult

_WORDS = {
    "die": "process killed",
    "stop": "process stopped",
    "lost": "answer lost",
    "cut": "activity cut",
    "keys": "keys away",
}


def rows(title: str, pairs: list[tuple[str, object]]) -> str:
    """Two columns, the numbers to the right."""
    width = max(len(name) for name, _ in pairs) + 2
    return "\n".join([title, *(f"  {name:<{width}}{value!s:>10}" for name, value in pairs)])


def table_report(walked: TableResult) -> str:
    """The numbers of a walk."""
    table, windows = walked.table, walked.windows_ms
    faults = [(_WORDS[kind], number) for kind, number in sorted(walked.faults.items())]
    pairs: list[tuple[str, object]] = [
        ("points on the path", len(table.path)),
        ("points walked", f"{table.share(walked.reached)} %"),
        ("cases there are", len(table.cases)),
        ("cases walked", walked.cases),
        ("of the whole table", f"{100 * walked.cases / len(table.cases):.1f} %"),
        ("cases per second", f"{walked.cases / walked.walking_s:.1f}" if walked.walking_s else "-"),
        ("seconds", f"{walked.took_s:.0f}"),
        *faults,
        *((verdict.value, walked.verdicts[verdict]) for verdict in Verdict),
        ("uses in flight together, across hosts", walked.double_sends),
        ("point not reached, timing too tight", len(walked.unreached)),
        ("window commit to fsync, median ms", f"{median(windows):.1f}" if windows else "-"),
    ]
    lines = [rows("the table", pairs)]
    lines += [
        f"  {count} points not on the path: {why}" for why, count in Counter(table.elsewhere.values()).items()
    ]
    lines += [f"  NEVER WALKED: {name}" for name in (walked.never if walked.whole else table.never)]
    lines += [f"  not reached: {case}" for case in walked.unreached]
    lines += [f"  {it}" for it in walked.bad]
    return "\n".join(lines)


def run_report(ran: RunResult, window_ms: float | None) -> str:
    """The numbers of a random run; the window is the table's, measured where nothing is in the way."""
    after, seen = ran.aftermath, ran.seen
    pairs: list[tuple[str, object]] = [
        *sorted(told(ran.injected).items()),
        ("faults that could not be injected", len(ran.not_injected)),
        ("scripted failures that no request met", ran.unmet),
        ("changes of state or generation, each with its record", after.changes),
        ("refreshes", after.refreshes),
        ("calls for them", after.uses),
        ("leases", seen.leases),
        *((f"answered {code}", number) for code, number in sorted(seen.answers.items()) if code != "token"),
        ("slowest answer to a reader, s", f"{seen.slowest_s:.1f}"),
        *((f"connections {state}", number) for state, number in sorted(after.states.items())),
        ("real server: refreshes", after.real.refreshes),
        ("real server: calls for them", after.real.calls),
        ("real server: live grants", after.real.live),
        *((f"real server: connections {it}", number) for it, number in sorted(after.real_states.items())),
        ("violations", len(ran.violations)),
        ("lost", len(after.lost)),
        ("outcome_unknown", len(after.unknown)),
        ("window commit to fsync, median ms", f"{window_ms:.1f}" if window_ms is not None else "-"),
        ("seconds", f"{ran.took_s:.0f}"),
    ]
    return "\n".join(
        [
            rows("the random run", pairs),
            *(f"  DIDN'T HAPPEN: {it}" for it in ran.missing),
            *(f"  {it}" for it in [*ran.not_injected, *ran.violations, *after.lost, *after.evidence]),
        ]
    )
