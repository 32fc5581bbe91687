"""The score of a mutation run, from mutmut's results."""

from tests.mutations import below, scores, table

RESULTS = """
    core.a.x_one__mutmut_1: killed
    core.a.x_one__mutmut_2: timeout
    core.a.x_two__mutmut_1: survived
    core.b.x_three__mutmut_1: killed
    core.c.x_four__mutmut_1: no tests
"""


def test_mutants_that_no_test_killed_count_as_left():
    found = scores(RESULTS)
    assert table(found)[2:] == [
        "| core.a | 3 | 67% | 1 |",
        "| core.b | 1 | 100% | 0 |",
        "| core.c | 1 | 0% | 1 |",
    ]
    assert below(found) == ["core.a", "core.c"]
    assert scores("") == {}
