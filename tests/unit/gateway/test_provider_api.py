"""Where a connection's API is: as the integration and its definition say, for some seconds from memory."""

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.gateway.proxy.provider_api import KEPT_S, ProviderApis
from providers.definition.schema_response import ApiRequest
from tests.fakes.api import Api, api

__all__ = ["api"]


async def test_an_integration_is_read_again_after_some_seconds(api: Api):
    integration = await api.integration(params={"domain": "git.acme.com"})
    connection = await api.active(integration)
    row = await api.parts.lease_rows.load(connection.tenant, connection.id)
    assert row is not None
    apis, now = ProviderApis(api.parts), 100.0
    apis.elapsed = lambda: now  # type: ignore[method-assign]  # a clock of the test's own
    assert (await apis.of(row)).base_url == "https://git.acme.com/api/v4"
    moved = integration.model_copy(update={"params": {"domain": "git.example.com"}})
    async with api.worker.write() as tx:
        await tx.integrations.put(moved, None, expected=integration.revision)
    assert (await apis.of(row)).base_url == "https://git.acme.com/api/v4"
    now += KEPT_S
    assert (await apis.of(row)).base_url == "https://git.example.com/api/v4"


async def test_the_definition_says_how_the_api_takes_the_credential(api: Api):
    connection = await api.active(await api.integration(provider="etsy", client_id="id-1"))
    row = await api.parts.lease_rows.load(connection.tenant, connection.id)
    assert row is not None
    etsy = await ProviderApis(api.parts).of(row)
    assert etsy.credential(Secret("t")) == [(b"Authorization", b"Bearer t"), (b"x-api-key", b"id-1")]
    assert etsy.takes == ApiRequest(headers={"x-api-key": "{client_id}"})
    with pytest.raises(Failure) as unfit:
        etsy.credential(Secret("a\r\nX: y"))
    assert unfit.value.code is ErrorCode.REPLY_UNREADABLE
