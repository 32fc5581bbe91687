"""The half of a link to Temporal that reads stories, with the real codec."""

from collections.abc import Sequence
from typing import Any

from evergrant_server.temporal_link.stories import MayRead, StoryCodec


class StoryReader:
    """Opens what `codec` opens; whoever makes it sets that."""

    codec: StoryCodec

    async def open_events(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return await self.codec.open_events(events)

    async def read_payloads(
        self, payloads: Sequence[dict[str, Any]], may_read: MayRead
    ) -> list[dict[str, Any]]:
        return [await self.codec.read(payload, may_read) for payload in payloads]
