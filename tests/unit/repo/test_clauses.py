"""Every clause of docs/security/clauses.yaml has a test, or says why it isn't met."""

from docs.clauses_page import clauses, known_tests, proofs


def test_every_clause_has_a_test_or_says_why_not() -> None:
    assert [it.id for it in clauses() if not proofs()[it.id] and not it.open] == []


def test_every_test_that_a_clause_names_is_there() -> None:
    there = set(known_tests())
    assert [name for it in clauses() for name in it.tests if name not in there] == []


def test_a_clause_stands_once() -> None:
    ids = [it.id for it in clauses()]
    assert sorted(set(ids)) == sorted(ids)
