"""A client of the run's Temporal server."""

import pytest
from temporalio.client import Client

from evergrant_server.temporal_link.received import DATA_CONVERTER


@pytest.fixture
async def client(temporal_address: str) -> Client:
    return await Client.connect(temporal_address, data_converter=DATA_CONVERTER)
