"""Explanations of permit decisions: which permit allowed, why the others did not, never against `decide`."""

from random import Random

import pytest

from evergrant_server.core.access import Action, Permit
from evergrant_server.policy import DecisionReason, PermitField, PermitMismatch, decide, explain
from tests.unit.policy.test_policy import permit

ASKED = {"integration": "crm", "subject": "user-1", "action": Action.TOKEN, "scopes": ("read", "write")}

INTEGRATION, SUBJECT, ACTION, SCOPE = PermitField
FURTHEST = {
    None: DecisionReason.ALLOWED,
    SCOPE: DecisionReason.SCOPE_ABOVE_CEILING,
    ACTION: DecisionReason.ACTION_NOT_PERMITTED,
    SUBJECT: DecisionReason.NO_PERMIT,
    INTEGRATION: DecisionReason.NO_PERMIT,
}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"integration": "erp", "subjects": ("user-2",), "actions": (Action.ADMIN,)}, INTEGRATION),
        ({"subjects": ("user-2",), "actions": (Action.ADMIN,), "ceiling": ()}, SUBJECT),
        ({"actions": (Action.ADMIN,), "ceiling": ()}, ACTION),
        ({"ceiling": ("read",)}, SCOPE),
    ],
)
def test_the_first_failing_field_of_each_other_permit_is_named(changes: dict, field: PermitField):
    found = explain([permit("b"), permit("a", **changes), permit("c")], **ASKED)
    assert (found.decision.allowed, found.decided_by, found.also_allowed_by) == (True, "b", ("c",))
    above = ("write",) if field is SCOPE else ()
    assert found.why_not == (PermitMismatch("a", field, above),)


def test_a_refusal_names_no_permit_as_the_deciding_one_and_the_nearest_first():
    permits = [permit("a", integration="erp"), permit("b", ceiling=("read",)), permit("c", subjects=("u",))]
    found = explain(permits, **ASKED)
    assert (found.decided_by, found.also_allowed_by) == (None, ())
    assert [(it.permit_name, it.field) for it in found.why_not] == [
        ("b", SCOPE), ("c", SUBJECT), ("a", INTEGRATION),
    ]  # fmt: skip
    assert explain([], **ASKED).why_not == ()


def some(random: Random, values: tuple, most: int = 2) -> tuple:
    return tuple(random.sample(values, random.randint(1, most)))


def random_permit(random: Random, name: str) -> Permit:
    return permit(
        name,
        random.choice(("*", "crm", "erp")),
        some(random, ("*", "user-1", "user-2", "user-10")),
        random.choice((None, (), some(random, ("read", "write", "admin"), 3))),
        some(random, tuple(Action)),
    )


def test_explanation_and_decision_never_disagree():
    """5,000 random requests. Where no permit allows, the nearest one gives the reason."""
    random, seen = Random(16), set()
    for _ in range(5_000):
        names = random.sample("abcdef", random.randint(0, 6))
        permits = [random_permit(random, name) for name in names]
        asked = {
            "integration": random.choice((None, "crm", "erp")),
            "subject": random.choice((None, "*", "user-1", "user-10")),
            "action": random.choice(tuple(Action)),
            "scopes": tuple(random.sample(("read", "write", "admin"), random.randint(0, 3))),
        }
        found = explain(permits, **asked)
        assert found.decision == decide(permits, **asked)
        allowing = [name for name in (found.decided_by, *found.also_allowed_by) if name is not None]
        assert sorted([*allowing, *(it.permit_name for it in found.why_not)]) == sorted(names)
        assert allowing == sorted(allowing)
        for name in names:  # each permit alone: whether it allows, and what it refuses by
            alone = decide([it for it in permits if it.name == name], **asked)
            (why,) = [it for it in found.why_not if it.permit_name == name] or [None]
            assert alone.allowed is (why is None)
            assert alone.reason is FURTHEST[None if why is None else why.field]
        nearest = None if allowing else found.why_not[0].field if names else INTEGRATION
        assert found.decision.reason is FURTHEST[nearest]
        seen.add(found.decision.reason)
    assert seen == set(DecisionReason)
