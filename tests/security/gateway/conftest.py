"""A gateway over a real store, and a raw API behind it, for each test."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.fakes.api import Api, api
from tests.fakes.platform.gateway import Gateway, RawUpstream, running_gateway, upstream_api

__all__ = ["api"]


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[RawUpstream]:
    async with upstream_api() as running:
        yield running


@pytest_asyncio.fixture
async def gateway(api: Api, upstream: RawUpstream) -> AsyncIterator[Gateway]:
    async with running_gateway(api, upstream) as running:
        yield running
