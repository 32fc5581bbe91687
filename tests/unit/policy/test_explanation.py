"""Explanations of permit decisions: which permit decided, why the others did not, never against `decide`."""

from random import Random

import pytest

from evergrant_server.core.access import Action, Effect, EnforcementMode
from evergrant_server.policy import (
    DecisionReason,
    PermitField,
    PermitMismatch,
    ProxiedRequest,
    decide,
    explain,
)
from tests.unit.policy.random_permits import random_permits, random_question
from tests.unit.policy.test_policy import CON, SOON, deny, permit, question

ASKED = question(scopes=("read", "write"), excess=("write",), connection=CON, address="10.1.2.3")._replace(
    request=ProxiedRequest("GET", "/repos", "safe")
)
ALL_WRONG = {
    "integration": "erp",
    "provider": "slack",
    "subjects": ("user-2",),
    "connections": ("con_" + "1" * 22,),
    "expires_at": ASKED.at,
    "sources": ("10.2.0.0/16",),
    "actions": (Action.ADMIN,),
    "methods": ("POST",),
    "paths": ("/user",),
    "tools": ("other",),
    "ceiling": ("read",),
    "exact_scopes": True,
}
FURTHEST = {
    None: DecisionReason.ALLOWED,
    PermitField.EXACT_SCOPES: DecisionReason.TOKEN_ABOVE_REQUEST,
    PermitField.SCOPE: DecisionReason.SCOPE_ABOVE_CEILING,
    PermitField.TOOL: DecisionReason.REQUEST_NOT_PERMITTED,
    PermitField.PATH: DecisionReason.REQUEST_NOT_PERMITTED,
    PermitField.METHOD: DecisionReason.REQUEST_NOT_PERMITTED,
    PermitField.ACTION: DecisionReason.ACTION_NOT_PERMITTED,
}


@pytest.mark.parametrize("place", range(len(PermitField)))
def test_the_first_failing_field_of_each_other_permit_is_named(place: int):
    field = list(PermitField)[place]
    wrong = permit("a", **dict(list(ALL_WRONG.items())[place:]))
    found = explain([permit("b"), wrong, permit("c")], ASKED)
    assert (found.decision.allowed, found.decided_by, found.allowed_by) == (True, "b", ("c",))
    above = ("write",) if field in (PermitField.SCOPE, PermitField.EXACT_SCOPES) else ()
    assert found.why_not == (PermitMismatch("a", Effect.ALLOW, field, above),)


def test_a_refusal_names_no_permit_as_the_deciding_one_and_the_nearest_first():
    permits = [permit("a", integration="erp"), permit("b", ceiling=("read",)), permit("c", subjects=("u",))]
    found = explain(permits, ASKED)
    assert (found.decided_by, found.allowed_by, found.valid_until) == (None, (), None)
    assert [(it.permit_name, it.field) for it in found.why_not] == [
        ("b", PermitField.SCOPE), ("c", PermitField.SUBJECT), ("a", PermitField.INTEGRATION),
    ]  # fmt: skip
    assert explain([], ASKED).why_not == ()


def test_a_denial_names_who_denied_who_else_and_who_would_have_allowed():
    permits = [permit("p"), deny("e"), deny("d", expires_at=SOON), deny("o", mode=EnforcementMode.OBSERVE)]
    found = explain([*permits, deny("n", scopes=("admin",))], ASKED)
    assert (found.decided_by, found.valid_until) == ("d", SOON)
    assert (found.allowed_by, found.denied_by, found.observed_by) == (("p",), ("e",), ("o",))
    assert found.why_not == (PermitMismatch("n", Effect.DENY, PermitField.SCOPE),)


def test_explanation_and_decision_never_disagree():
    """5,000 random requests. Where no permit decides, the nearest allow gives the reason."""
    random, seen = Random(16), set()
    for _ in range(5_000):
        permits = random_permits(random)
        asked = random_question(random)
        found = explain(permits, asked)
        assert found.decision == decide(permits, asked) == decide(permits[::-1], asked)
        fitting = [found.decided_by, *found.allowed_by, *found.denied_by, *found.observed_by]
        named = [it for it in fitting if it is not None] + [it.permit_name for it in found.why_not]
        assert sorted(named) == sorted(it.name for it in permits)
        for one in permits:  # each allow alone: whether it allows, and what it refuses by
            if one.effect is Effect.ALLOW:
                (why,) = [it.field for it in found.why_not if it.permit_name == one.name] or [None]
                assert decide([one], asked).reason is FURTHEST.get(why, DecisionReason.NO_PERMIT)
        if found.decided_by is None:
            nearest = next((it.field for it in found.why_not if it.effect is Effect.ALLOW), None)
            usual = DecisionReason.NO_PERMIT
            assert found.decision.reason is (usual if nearest is None else FURTHEST.get(nearest, usual))
        seen.add(found.decision.reason)
    assert seen == set(DecisionReason)
