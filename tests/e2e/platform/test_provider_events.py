"""From a provider's word to a connection that works again, on real parts.

API, worker, Temporal and database are real, and so is, in the last test, the authorization
server (django-oauth-toolkit, whose introspection knows access tokens alone).
"""

import asyncio
import hashlib
import time
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlsplit

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant, Origin
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.provider_events.external_revocation import IntrospectionFinding
from evergrant_server.core.secret import Secret
from examples.demo.authorization_server import AuthorizationServer
from tests.e2e.servers.test_authorization_server import REDIRECT, Client
from tests.fakes.databases import migrated_sqlite, sqlite_url
from tests.fakes.events.transmitter import ISSUER, MEDIA_TYPE, TOKEN_REVOKED, Transmitter, keys_server
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation, installation
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import a_connection, an_integration, token_set
from tests.faults.revocation.test_external_revocation import due, one_pass, outcome


async def test_an_event_stops_leases_with_the_reason_and_a_consent_repairs_it(
    temporal_address: str, tmp_path: Path
):
    transmitter = Transmitter()
    await migrated_sqlite(tmp_path)
    async with ScriptedProvider() as idp, keys_server(transmitter) as keys:
        transmitter.audience = idp.client_id
        where = (temporal_address, sqlite_url(tmp_path), tmp_path, idp)
        async with installation(*where, allow=(keys.allowance,)) as place:
            connection = await place.connect()
            integration = await place.integration_of(connection)
            async with place.api() as http:
                put = {"kind": "set", "issuer": ISSUER, "jwks_uri": keys.url}
                where = f"/v1/integrations/{integration.name}/security-events"
                made = await http.put(where, json=put)
                assert made.status_code == 201, made.text
                async with asyncio.timeout(PATIENCE_S):  # the worker reads the keys
                    while (await http.get(where)).json()["keys"] != 2:
                        await asyncio.sleep(0.05)
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
                shown = f"/v1/connections/{connection.id}?live=true"
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        live = (await http.get(shown)).json()
                        if live["live"] and live["live"]["reason"] == "grant_revoked_elsewhere":
                            break
                        await asyncio.sleep(0.05)

                await place.consent(connection)
                await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)
                again = await http.post("/v1/lease", json=ask)
                assert (again.status_code, again.json()["generation"]) == (200, 2)
            assert AuditAction.REVOKED_AT_PROVIDER in await place.actions(connection)
            assert keys.reads == 1


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


async def test_django_oauth_toolkit_forgets_a_token_and_the_next_pass_finds_out(
    temporal_address: str, tmp_path: Path
):
    await migrated_sqlite(tmp_path)
    async with running_authorization_server(tmp_path / "server", "--access-token-seconds", "600") as server:
        await server.register(REDIRECT)
        client = Client(server)
        tokens = await client.tokens()
        allow = (urlsplit(server.issuer).netloc,)
        async with installation(temporal_address, sqlite_url(tmp_path), tmp_path, allow=allow) as place:
            connection = await held(place, server, tokens)
            await due(place, connection)
            await one_pass(place)
            assert await outcome(place, connection) == IntrospectionFinding.ACCESS_TOKEN_ACTIVE
            assert (await place.row(connection)).state is LifecycleState.ACTIVE

            gone = await client.http.post(
                "/revoke_token/", data={"token": tokens["refresh_token"]}, auth=client.credentials
            )
            assert gone.status_code == 200
            await due(place, connection)
            assert (await one_pass(place)).refresh_requested == 1
            ended = await place.until(connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH)
            assert ended.reason is ErrorCode.GRANT_REJECTED
        await client.http.aclose()


async def held(place: Installation, server: AuthorizationServer, tokens: dict[str, str]) -> Connection:
    """A connection that holds these tokens, with its workflow."""
    now, issuer = place.parts.clock.now(), server.issuer
    endpoints = Endpoints(
        issuer=issuer,
        authorization_endpoint=f"{issuer}/authorize/",
        token_endpoint=f"{issuer}/token/",
        revocation_endpoint=f"{issuer}/revoke_token/",
        introspection_endpoint=f"{issuer}/introspect/",
    )
    known = {"client_id": server.client_id, "issuer": issuer, "endpoints": endpoints}
    integration = an_integration(TENANT, now, **known)
    async with place.store.write() as tx:
        await tx.integrations.put(integration, Secret(server.client_secret), expected=None)
    connection = a_connection(integration, now)
    after = connection.granted(now)
    grant = Grant.from_tokens(token_set(tokens), generation=1, requested=("read",), at=now)
    async with place.store.write() as tx:
        await tx.connections.add(connection)
        saved = await tx.grants.install(
            after, token_set(tokens), grant, origin=Origin.NEW, expected=connection.revision
        )
    assert await place.parts.reconciler.start_workflow(TENANT, connection.id)
    return saved
