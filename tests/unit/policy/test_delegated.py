"""Delegations: no link of a chain reaches what the one above it doesn't, whatever permits and bounds say."""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evergrant_server.core.agents.delegations import DELEGATED_ACTIONS, MOST_DEPTH, Reach
from evergrant_server.policy import (
    DelegationLink,
    PermitQuestion,
    Target,
    decide,
    decide_delegated,
    may_see_delegated,
)
from tests.fakes.databases import NOW
from tests.unit.policy.random_permits import (
    CONNECTIONS,
    SCOPES,
    random_permit,
    random_permits,
    random_question,
)
from tests.unit.policy.test_policy import permit

ALL = permit("zz", "*", ("*",), actions=DELEGATED_ACTIONS)


def some(random: Random, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return tuple(random.sample(values, random.randint(1, len(values)))) if random.random() < 0.3 else None


def a_reach(random: Random) -> Reach:
    actions = random.choice((DELEGATED_ACTIONS, DELEGATED_ACTIONS, DELEGATED_ACTIONS[:1]))
    named = {"integrations": some(random, ("crm", "erp")), "connections": some(random, CONNECTIONS)}
    return Reach(scopes=some(random, SCOPES), actions=actions, **named)


def a_chain(random: Random) -> list[DelegationLink]:
    reach, found = a_reach(random), []
    for _ in range(random.randint(1, MOST_DEPTH)):
        permits = (
            [*random_permits(random)[:2], ALL] if random.random() < 0.8 else [random_permit(random, "a")]
        )
        found.append(DelegationLink("user-1", reach, permits))
        reach = a_reach(random).within(reach)
    return found


def a_question(random: Random) -> PermitQuestion:
    connection = random.choice((*CONNECTIONS, None))
    subject = random.choice(("user-1", "user-1", "user-1", "user-2", None))
    target = Target(random.choice(("crm", "erp")), "gitlab", subject, connection)
    question = random_question(random)._replace(target=target)
    return question if random.random() < 0.2 else question._replace(action=random.choice(DELEGATED_ACTIONS))


@settings(max_examples=300)
@given(st.builds(Random, st.integers(0, 2**32)))
def test_no_link_reaches_what_the_one_above_it_does_not(random: Random):
    links, question = a_chain(random), a_question(random)
    above = None
    for depth in range(1, len(links) + 1):
        decision = decide_delegated(links[:depth], question)
        link = links[depth - 1]
        within = question.target.subject == "user-1" and question.action in link.reach.actions
        within = within and link.reach.names(question.target.integration, question.target.connection_id)
        within = within and set(question.scopes) <= set(link.reach.scopes or question.scopes)
        own = within and decide(link.permits, question).allowed
        assert decision.allowed is (own and (above is None or above.allowed))
        if above is not None and decision.allowed:
            ends = decision.valid_until
            assert above.valid_until is None or (ends is not None and ends <= above.valid_until)
            assert decision.needs_call_approval >= above.needs_call_approval
            assert set(decision.observed) >= set(above.observed)
        if decision.allowed:
            assert may_see_delegated(links[:depth], question.target, NOW, question.address)
        above = decision


@settings(max_examples=100)
@given(st.builds(Random, st.integers(0, 2**32)))
def test_a_reach_without_bounds_of_its_own_has_its_parents(random: Random):
    parent = a_reach(random)
    assert Reach().within(parent) == parent
    child = a_reach(random).within(parent)
    assert set(child.actions) <= set(parent.actions)
    assert parent.scopes is None or child.scopes is not None
    bounded = parent.integrations is not None or parent.connections is not None
    assert not bounded or child.integrations is not None or child.connections is not None
