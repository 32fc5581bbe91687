"""The report of `reconcile` and its exit: drift and missing answers fail the command."""

import pytest

from evergrant_server.cli.operate import print_report
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.temporal_link.reconcile import ReconcileCounts


@pytest.mark.parametrize(
    ("result", "code", "named"),
    [
        (
            ReconcileCounts(unanswered=("con_1", "con_2")),
            ErrorCode.TEMPORAL_UNAVAILABLE,
            "con_2: its workflow doesn't",
        ),
        (
            ReconcileCounts(unanswered=("con_1",), workers_answered=False),
            ErrorCode.TEMPORAL_UNAVAILABLE,
            "start a worker and run",
        ),
        (
            ReconcileCounts(store_behind=("con_3",), unanswered=("con_1",)),
            ErrorCode.STORE_BEHIND,
            "con_1: its workflow",
        ),
    ],
)
def test_unanswered_workflows_are_named_and_the_command_fails(
    result: ReconcileCounts, code: ErrorCode, named: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(Failure) as failed:
        print_report(result, restarting=False)
    assert failed.value.code is code
    assert named in capsys.readouterr().out


def test_a_pass_that_heard_from_everybody_is_no_failure(capsys: pytest.CaptureFixture[str]):
    print_report(ReconcileCounts(live=3, started=1), restarting=False)
    assert capsys.readouterr().out == "3 live connections, 1 workflows started\n"
