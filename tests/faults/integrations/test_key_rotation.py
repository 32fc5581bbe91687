"""A client's signing key is rotated: no request fails, whichever of the two the provider knows.

RFC 7523 section 3: an assertion of an unknown key is invalid_client, which has spent no refresh token.
"""

from datetime import timedelta

import pytest
from joserfc.jwk import ECKey

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.credentials import ClientKey
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from providers.definition.schema_request import ClientAuth
from tests.fakes.platform.installation import STRICT, Installation
from tests.fakes.providers.client_grants import OtherGrants

OLD, NEW = (ECKey.generate_key("P-256", {"kid": kid}) for kid in ("old", "new"))


def signing(key: ECKey) -> ClientKey:
    return ClientKey(private=Secret(key.as_pem(private=True).decode()), id=key.kid)


@pytest.fixture
def provider() -> OtherGrants:
    return OtherGrants(keys={"old": OLD.as_dict(private=False)})


@pytest.fixture
async def connection(place: Installation) -> Connection:
    """Of a client that signs with the old key."""
    integration = await place.integration(STRICT, client_auth=ClientAuth.PRIVATE_KEY_JWT)
    async with place.store.write() as tx:
        await tx.integrations.put(integration, None, expected=integration.revision, client_key=signing(OLD))
    return await place.granted(await place.begin(await place.integration_now(integration.id)))


async def rotate(place: Installation, connection: Connection, overlap_s: float = 3600) -> Integration:
    until = place.parts.clock.now() + timedelta(seconds=overlap_s)
    current = await place.integration_of(connection)
    async with place.store.write() as tx:
        return await tx.integrations.rotate_secret(
            current, signing(NEW), until=until, expected=current.revision
        )


async def test_refreshes_work_before_and_after_the_provider_knows_the_new_key(
    place: Installation, provider: OtherGrants, connection: Connection
):
    await rotate(place, connection)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert (await place.integration_of(connection)).secret_refused_at is not None
    del provider.keys["old"]
    provider.keys["new"] = NEW.as_dict(private=False)
    assert (await place.ensure_fresh(connection, 2)).generation == 3
    assert (await place.integration_of(connection)).secret_refused_at is None


async def test_after_the_overlap_the_key_before_signs_nothing(place: Installation, connection: Connection):
    await rotate(place, connection, overlap_s=-1)
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.CLIENT_REJECTED


async def test_the_way_back_is_the_key_before(place: Installation, connection: Connection):
    rotated = await rotate(place, connection)
    async with place.store.write() as tx:
        back = await tx.integrations.restore_previous_secret(rotated, expected=rotated.revision)
        key = await tx.integrations.client_key(back)
    assert key == signing(OLD)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert (await place.integration_of(connection)).secret_refused_at is None
