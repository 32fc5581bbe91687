"""The protocol's rules, tried by a model that stops, kills and cuts wherever it likes.

With all rules nothing is lost that needn't be, nothing is sent twice on one host, and every
attempt ends. Each rule is needed: without it the same search finds what goes wrong.
"""

from dataclasses import fields

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from evergrant_server.core.integrations import Rotation
from evergrant_server.core.single_use import attempt as protocol
from tests.unit.core.single_use.protocol_parts import Rules, without
from tests.unit.core.single_use.protocol_world import World

WORKERS = st.sampled_from(["a1", "a2", "b1"])
ROTATIONS = st.sampled_from([Rotation.STRICT, Rotation.UNKNOWN, Rotation.GRACE, Rotation.NONE])


@pytest.fixture(autouse=True)
def smallest_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """One send and one more: walks are short, and a bound that is not kept shows in them."""
    monkeypatch.setattr(protocol, "MAX_SENDS", 2)


class Protocol(RuleBasedStateMachine):
    """One walk through the world."""

    protocol = Rules()

    @initialize(rotation=ROTATIONS, kills=st.booleans())
    def made(self, rotation: Rotation, kills: bool) -> None:
        self.world = World(rotation, kills, self.protocol)

    @rule(worker=WORKERS, steps=st.integers(0, 5))
    def work(self, worker: str, steps: int) -> None:
        """Asked to refresh, and so far into the section."""
        self.world.begin(worker)
        for _ in range(steps):
            self.world.step(worker)

    @rule(worker=WORKERS)
    def step(self, worker: str) -> None:
        self.world.step(worker)

    @rule(worker=WORKERS)
    def replay(self, worker: str) -> None:
        self.world.replay(worker)

    @rule(worker=WORKERS, befalls=st.sampled_from(["pause", "kill", "lose_answer"]))
    def fault(self, worker: str, befalls: str) -> None:
        getattr(self.world, befalls)(worker)

    @rule(worker=WORKERS, steps=st.integers(0, 4), befalls=st.sampled_from(["pause", "kill"]))
    def work_until(self, worker: str, steps: int, befalls: str) -> None:
        """Every step of the section, and then no more."""
        self.work(worker, steps)
        getattr(self.world, befalls)(worker)

    @rule(worker=WORKERS)
    def repair(self, worker: str) -> None:
        self.world.resume(worker)
        self.world.restart(worker)

    @rule(worker=WORKERS, status=st.sampled_from([500, 502, 503, 200]))
    def fail(self, worker: str, status: int) -> None:
        self.world.fail(worker, status)

    @rule(seconds=st.sampled_from([1, 10, 20, 70, 120]))
    def time_passes(self, seconds: int) -> None:
        self.world.wait(seconds)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


def search(rules: Rules, walks: int) -> None:
    """Walk at random, the same walks each time. Raises AssertionError for what it finds."""
    machine = type("Protocol", (Protocol,), {"protocol": rules})
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    how = settings(
        max_examples=walks,
        stateful_step_count=30,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=slow,
        report_multiple_bugs=False,
        phases=[Phase.generate],
        print_blob=False,
    )
    run_state_machine_as_test(machine, settings=how)


STRICT = Rotation.STRICT
STOPPED = "pause a1, wait 170"  # past every deadline, and past the access token's end

# For each rule a walk that goes wrong without it: rotation, does a second use end the family?
STORIES: dict[str, tuple[Rotation, bool, str]] = {
    # two workers of one host ask the provider at once
    "waits": (STRICT, True, "begin a1, step a1 2, begin a2, step a2 2"),
    # stopped between intent and check; when it goes on, another host has long sent
    "send_by": (STRICT, True, f"begin a1, {STOPPED}, begin b1, step b1 5, resume a1, step a1 2"),
    # killed with an answer in hand
    "journal": (STRICT, True, "begin a1, step a1 4, kill a1"),
    # its neighbour asks again, and ends the family that the journal holds the newest token of
    "journal_first": (STRICT, True, "begin a1, step a1 4, kill a1, begin a2, step a2 5"),
    # an old answer over a newer grant
    "compare": (
        Rotation.GRACE,
        False,
        "begin a1, step a1 4, pause a1, wait 20, begin b1, step b1 5, wait 170, "
        "begin b1, step b1 5, wait 40, resume a1, step a1 1",
    ),
    # lost, sent again and lost, and sent again
    "counts": (
        STRICT,
        False,
        "begin a1, step a1 2, lose_answer a1, wait 170, "
        "begin b1, step b1 2, lose_answer b1, wait 170, begin a1, step a1 2",
    ),
    # stopped in the instant before the bytes; its neighbour can know it, and must wait
    "fences": (STRICT, True, f"begin a1, step a1, {STOPPED}, begin a2, step a2 5, resume a1, step a1"),
    # two workers die one after the other, and neither has sent
    "unsent": (STRICT, True, "begin a1, kill a1, begin a2, kill a2"),
    # the other host's second use ended the family; the answer is worth nothing
    "verifies": (STRICT, True, f"begin a1, step a1 4, {STOPPED}, begin b1, step b1 5, resume a1, step a1"),
    # its neighbour has sent again when it goes on: the provider has ended what it installs
    "defers": (
        STRICT,
        True,
        f"begin a1, step a1 2, {STOPPED}, begin a2, step a2 2, resume a1, step a1 3, step a2 3",
    ),
}


def play(rules: Rules, rotation: Rotation, kills: bool, steps: str) -> World:
    """Walk as told, and let the faults stop. Raises AssertionError for what goes wrong."""
    world = World(rotation, kills, rules)
    for step in steps.split(", "):
        do, what, *times = step.split()
        for _ in range(int(times[0]) if times else 1):
            world.wait(int(what)) if do == "wait" else getattr(world, do)(what)
            world.check()
    world.settle()
    return world


def test_the_rules_are_enough():
    search(Rules(), 300)


@pytest.mark.parametrize("rule", [it.name for it in fields(Rules)])
def test_each_rule_is_needed(rule: str):
    play(Rules(), *STORIES[rule])
    with pytest.raises(AssertionError):
        play(without(rule), *STORIES[rule])


@pytest.mark.parametrize("rule", ["waits", "journal_first"])
def test_the_search_finds_what_is_wrong_by_itself(rule: str):
    with pytest.raises(AssertionError):
        search(without(rule), 3000)  # which walks come depends on the modules that are loaded


def test_inside_a_grace_another_host_waits_while_the_token_may_yet_be_sent():
    """Sent after its successor was spent, it would end the family."""
    stopped = "begin a1, begin b1, step b1 5, begin b1, step b1 5, step a1 5"
    world = play(Rules(), Rotation.GRACE, True, stopped)
    assert (world.generation, world.provider.alive) == (2, True)


def test_what_no_client_excludes_is_counted():
    """Stopped in the instant between check and bytes, with its successor on another host."""
    steps = f"begin a1, step a1, {STOPPED}, begin b1, step b1 5, resume a1, step a1"
    assert play(Rules(), STRICT, True, steps).windows == 1


def test_an_answer_of_a_stopped_neighbour_is_not_lost_when_its_host_goes_on():
    """Whoever lives on its host brings it to the store; who wakes up commits it again and changes nothing."""
    steps = "begin a1, step a1 4, pause a1, replay a2, resume a1, step a1"
    world = play(Rules(), STRICT, True, steps)
    assert (world.generation, world.active, world.windows) == (2, True, 0)
