"""From a provider's word to a connection that works again: API, worker, Temporal and database are real."""

import hashlib
import json
import time
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlsplit

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from tests.fakes.databases import migrated_sqlite, sqlite_url
from tests.fakes.events.transmitter import ISSUER, MEDIA_TYPE, TOKEN_REVOKED, Transmitter
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, raw


async def test_an_event_stops_leases_with_the_reason_and_a_consent_repairs_it(
    temporal_address: str, tmp_path: Path
):
    transmitter = Transmitter()
    await migrated_sqlite(tmp_path)
    async with ScriptedProvider() as idp:
        transmitter.audience = idp.client_id
        idp.script(raw(json.dumps(transmitter.jwks).encode()), at="keys")
        where = (temporal_address, sqlite_url(tmp_path), tmp_path, idp)
        async with installation(*where) as place:
            connection = await place.connect()
            integration = await place.integration_of(connection)
            async with place.api() as http:
                put = {"kind": "set", "issuer": ISSUER, "jwks_uri": idp.url("keys")}
                where = f"/v1/integrations/{integration.name}/security-events"
                made = await http.put(where, json=put)
                assert made.status_code == 201, made.text
                await eventually(lambda: http.get(where), lambda it: it.json()["keys"] == 2)
                ask = {"integration": integration.name, "subject": "user-1"}
                assert (await http.post("/v1/lease", json=ask)).status_code == 200

                path = urlsplit(made.json()["url"]).path
                happened = time.time()  # after the grant was obtained: a tenth of a second counts
                event = transmitter.token(happened, kind=TOKEN_REVOKED, subject=named(idp), toe=happened)
                pushed = await http.post(path, content=event, headers={"Content-Type": MEDIA_TYPE})
                assert pushed.status_code == 202, pushed.text
                refused = await http.post("/v1/lease", json=ask)
                assert (refused.status_code, refused.json()["code"]) == (409, "consent_required")
                assert refused.json()["reason"] == "grant_revoked_elsewhere"
                assert refused.json()["connect_url"]
                await place.until_described(connection, lambda it: it.reason == "grant_revoked_elsewhere")

                await place.consent(connection)
                await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)
                again = await http.post("/v1/lease", json=ask)
                assert (again.status_code, again.json()["generation"]) == (200, 2)
            assert AuditAction.REVOKED_AT_PROVIDER in await place.actions(connection)
            assert idp.count("keys") == 1


def named(idp: ScriptedProvider) -> dict[str, str]:
    """The refresh token as Google names one, without showing it."""
    token = idp.families[-1].refresh_token.encode()
    twice = hashlib.sha512(hashlib.sha512(token).digest()).digest()
    return {
        "subject_type": "oauth_token",
        "token_type": "refresh_token",
        "token_identifier_alg": "hash_base64_sha512_sha512",
        "token": b64encode(twice).decode(),
    }
