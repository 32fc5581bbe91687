"""Turns that several parties share: how many each may hold, whose turn is next, and that none is lost."""

import asyncio
import random

from evergrant_server.bounded_concurrency import FairTurns


class Place:
    """Takes turns in tasks; `order` has who got one, and each holds it until `release`."""

    def __init__(self, size: int) -> None:
        self.turns = FairTurns(size)
        self.order: list[str] = []
        self._held: dict[asyncio.Task[None], asyncio.Event] = {}

    async def ask(self, *names: str) -> list[asyncio.Task[None]]:
        """One caller for each name: a party, and after a slash its queue."""
        tasks = [asyncio.create_task(self._hold(name, asyncio.Event())) for name in names]
        await settle()
        return tasks

    async def _hold(self, name: str, released: asyncio.Event) -> None:
        party, _, queue = name.partition("/")
        async with self.turns.turn(party, queue):
            self.order.append(name)
            task = asyncio.current_task()
            assert task is not None
            self._held[task] = released
            await released.wait()

    async def release(self, task: asyncio.Task[None] | None = None) -> None:
        """The oldest turn, or this one."""
        self._held.pop(task or next(iter(self._held))).set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_parties_of_many_parts_have_about_half_of_what_is_left():
    place = Place(96)
    for party in "abcd":
        await place.ask(*(f"{party}/{part}" for part in "123456" * 16))
    assert [sum(it[0] == party for it in place.order) for party in "abcd"] == [45, 24, 13, 7]


async def test_one_part_has_a_third_and_leaves_its_party_turns():
    place = Place(100)
    await place.ask(*["a/greedy"] * 100)
    await place.ask(*["a/second"] * 100)
    assert [place.order.count(it) for it in ("a/greedy", "a/second")] == [34, 11]
    await place.ask(*["b/"] * 100)
    assert place.order.count("b/") == 19
    assert place.turns.has_turn("c")
    assert not place.turns.has_turn("b")


async def test_the_queues_of_a_party_are_served_in_turn_and_each_in_order():
    place = Place(1)
    await place.ask("a/greedy")
    await place.ask(*["a/greedy"] * 3, "a/second", "a/third", "a/second")
    for _ in range(6):
        await place.release()
    served = [it.removeprefix("a/") for it in place.order]
    assert served == ["greedy", "greedy", "second", "third", "greedy", "second", "greedy"]


async def test_a_turn_that_is_given_back_goes_to_the_first_that_may_have_it():
    place = Place(3)
    first, *_ = await place.ask("a", "a", "b", "c", "d")
    assert place.order == ["a", "b", "c"]
    await place.release(first)
    assert place.order[3:] == ["a"], "which came first"


async def test_a_turn_goes_to_none_that_left_in_the_same_moment():
    place = Place(1)
    holder, left, stays = await place.ask("a", "b", "c")
    place._held.pop(holder).set()
    left.cancel()
    await settle()
    assert place.order == ["a", "c"]
    stays.cancel()
    await settle()
    await place.ask("d")
    assert place.order == ["a", "c", "d"]


async def test_no_turn_is_lost_whoever_goes_and_whenever():
    chance = random.Random(7)
    place = Place(8)
    tasks = await place.ask(*(chance.choice("abc") for _ in range(300)))
    while not all(it.done() for it in tasks):
        doomed = chance.choice([it for it in tasks if not it.done()])
        if chance.random() < 0.5 or not place._held:
            place._held.pop(doomed, None)
            doomed.cancel()  # while it waits, holds one, or was just given one
        else:
            place._held.pop(next(iter(place._held))).set()
        if chance.random() < 0.7:
            await asyncio.sleep(0)
    place.order.clear()
    await place.ask(*"abcdefgh")
    assert place.order == list("abcdefgh"), "all eight are there"
