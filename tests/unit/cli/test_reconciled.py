"""What `reconcile` prints of a pass, and how it ends."""

import pytest

from evergrant_server.cli.operate import report
from evergrant_server.core.errors import Code, Failure
from evergrant_server.temporal_link import Reconciled


@pytest.mark.parametrize(
    ("result", "code", "named"),
    [
        (Reconciled(unanswered=("con_1", "con_2")), Code.TEMPORAL_UNAVAILABLE, "con_2: its workflow doesn't"),
        (Reconciled(unanswered=("con_1",), compared=False), Code.TEMPORAL_UNAVAILABLE, "start one and run"),
        (Reconciled(behind=("con_3",), unanswered=("con_1",)), Code.STORE_BEHIND, "con_1: its workflow"),
    ],
)
def test_who_was_not_compared_is_named_and_the_command_fails(
    result: Reconciled, code: Code, named: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(Failure) as failed:
        report(result, restarting=False)
    assert failed.value.code is code
    assert named in capsys.readouterr().out


def test_a_pass_that_heard_from_everybody_is_no_failure(capsys: pytest.CaptureFixture[str]):
    report(Reconciled(live=3, started=1), restarting=False)
    assert capsys.readouterr().out == "3 live connections, 1 workflows started\n"
