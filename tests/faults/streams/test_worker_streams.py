"""A worker sends the installation's stream by itself, to a private host that no tenant may reach by that."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.events.webhook_receiver import Receiver
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import Installation


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
def settings(receiver: Receiver) -> dict[str, Any]:
    return {"audit_stream_url": receiver.url}


async def test_what_a_worker_and_the_api_record_reaches_the_receiver(place: Installation, receiver: Receiver):
    connection = await place.connect()

    async def of_connection() -> dict[str, Any]:
        """The bodies of the connection's records by their action."""
        events = [event for message in receiver.received for event in json.loads(message.body)]
        mine = [event for event in events if event.get("subject") == connection.id]
        return {event["type"]: json.loads(base64.b64decode(event["data_base64"])) for event in mine}

    bodies = await eventually(of_connection, lambda bodies: "evergrant.audit.grant.installed" in bodies)
    assert bodies["evergrant.audit.grant.installed"]["object"] == connection.id
