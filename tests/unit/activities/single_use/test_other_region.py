"""Another region knows the intent before a byte leaves, and has the tokens before the journal drops them."""

from dataclasses import dataclass, field
from typing import cast

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.regions.serving_region import Region
from tests.fakes.failures import fails
from tests.unit.activities.single_use.protocol_worker import RecordedOutcome, Worker


@dataclass
class ScriptedRegion:
    """Says what the other region has, and notes what this one had when it was asked."""

    worker: Worker
    refuses: ErrorCode | None = None
    has_reply: bool = True
    asked: list[str] = field(default_factory=list)

    async def confirmed(self) -> None:
        opened = await self.worker.opened()
        self.asked.append("an intent" if opened is not None else "nothing")
        if self.refuses is not None:
            raise Failure(self.refuses)

    async def has_all(self) -> bool:
        self.asked.append(f"tokens, and the journal {self.worker.files()}")
        return self.has_reply


def beside(worker: Worker, **script: object) -> ScriptedRegion:
    region = ScriptedRegion(worker, **script)  # type: ignore[arg-type]  # a test's own words
    worker.single_use._region = cast(Region, region)
    return region


async def test_the_other_region_knows_the_intent_before_it_is_sent_and_the_tokens_before_they_are_dropped(
    worker: Worker,
):
    region = beside(worker)
    assert await worker.spend(await worker.begin(), RecordedOutcome(worker.journal)) == "at-2"
    assert region.asked == ["an intent", "tokens, and the journal ['.entry']"]
    assert worker.files() == []


async def test_an_intent_that_is_not_known_elsewhere_is_withdrawn(worker: Worker):
    region = beside(worker, refuses=ErrorCode.REGION_AWAY)
    with fails(ErrorCode.REGION_AWAY):
        await worker.begin()
    assert await worker.opened() is None
    assert worker.files() == []
    region.refuses = None
    use = await worker.begin()
    assert (await worker.row_of(use.row)).sends == 1, "what wasn't sent isn't counted"
    assert use.row.outcome is not AttemptOutcome.NOT_SENT


async def test_a_journal_keeps_the_reply_that_the_other_region_does_not_have(worker: Worker):
    beside(worker, has_reply=False)
    assert await worker.spend(await worker.begin(), RecordedOutcome(worker.journal)) == "at-2"
    assert worker.files() == [".entry"]
