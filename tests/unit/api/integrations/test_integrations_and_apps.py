"""Integrations and their registration, apps, keys, permits and the first admin, over HTTP."""

from datetime import datetime, timedelta

import pytest

from evergrant_server import audit
from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration, IntegrationState
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from evergrant_server.core.single_use.attempt import AttemptOutcome
from tests.conformance.store.samples import an_attempt
from tests.fakes.api import TENANT, Api

LIFETIME = timedelta(days=90)
GITLAB = {"provider": "gitlab", "client_id": "client-1", "client_secret": "canary-secret"}
GENERIC = {**GITLAB, "provider": "generic", "issuer": "https://idp.example"}
ENDPOINTS = Endpoints(
    issuer="https://idp.example",
    authorization_endpoint="https://idp.example/authorize",
    token_endpoint="https://idp.example/token",
)


async def put(api: Api, admin: str, body: dict, name: str = "crm"):
    return await api.call("PUT", f"/v1/integrations/{name}", admin, json=body)


async def stored(api: Api, name: str = "crm") -> Integration:
    async with api.worker.read() as tx:
        found = await tx.integrations.by_name(TENANT, name)
    assert found is not None
    return found


def discovers(api: Api, failure: ErrorCode | None = None, **changed: str) -> None:
    """What the worker writes."""

    async def discover(request: DiscoverEndpoints) -> DiscoveryResult:
        tenant, integration_id = request.tenant, request.integration_id
        changes = {"state": IntegrationState.READY, "endpoints": ENDPOINTS, **changed}
        if failure:
            changes = {"state": IntegrationState.FAILED, "problem": "it names another issuer"}
        async with api.worker.write() as tx:
            before = await tx.integrations.get(tenant, integration_id)
            assert before is not None
            await tx.integrations.replace(before.model_copy(update=changes), expected=before.revision)
        return DiscoveryResult(failure=failure, detail="it names another issuer" if failure else "")

    api.link.on_job[jobs.DISCOVER_ENDPOINTS.name] = discover


@pytest.mark.parametrize("secret", ["\ud800", "a\0b"])
@pytest.mark.parametrize("name", ["client_secret", "initial_access_token", "private", "certificate"])
async def test_a_secret_that_no_request_can_carry_is_refused(api: Api, admin: str, name: str, secret: str):
    held = {
        "client_secret": {"client_secret": secret},
        "initial_access_token": {**GENERIC, "registration": "dynamic", "initial_access_token": secret},
        "private": {"client_key": {"private": secret}},
        "certificate": {"client_certificate": {"certificate": secret, "private": "p"}},
    }[name]
    answer = await put(api, admin, {**GITLAB, **held})
    assert (answer.status_code, answer.json()["field"].rpartition(".")[2]) == (400, name)
    if name == "client_secret":
        await put(api, admin, GITLAB)
        answer = await api.post("/v1/integrations/crm/rotate-secret", admin, {"client_secret": secret})
        assert (answer.status_code, answer.json()["field"]) == (400, name)


@pytest.mark.parametrize("seconds", [3_153_600_001, 1e18, 10**30, 0])
async def test_a_refresh_token_idles_for_a_century_at_most(api: Api, admin: str, seconds: float):
    answer = await put(api, admin, {**GITLAB, "refresh": {"refresh_token_idle_s": seconds}})
    assert (answer.status_code, answer.json()["field"]) == (400, "refresh.refresh_token_idle_s")
    longest = {**GITLAB, "refresh": {"refresh_token_idle_s": 3_153_600_000}}
    assert (await put(api, admin, longest)).status_code == 201


async def test_the_first_admin_key_is_made_once(api: Api, admin: str):
    assert (await api.get("/v1/apps", admin)).json()["items"][0]["name"] == "admin"
    with pytest.raises(Failure) as refused:
        await bootstrap_admin(api.store, api.clock, TENANT, LIFETIME)
    assert refused.value.code is ErrorCode.ALREADY_EXISTS
    api.clock.advance(1)
    second = await bootstrap_admin(api.store, api.clock, TENANT, LIFETIME, force=True)
    assert second != admin
    assert (await api.get("/v1/apps", second)).status_code == 200
    assert (await api.get("/v1/apps", admin)).status_code == 200
    third = await bootstrap_admin(api.store, api.clock, TENANT, LIFETIME, force=True)  # both were lost
    answers = [(await api.get("/v1/apps", key)).status_code for key in (admin, second, third)]
    assert answers == [401, 200, 200]
    # an admin permit reaches configuration, not tokens
    await api.active(await api.integration())
    assert (await api.lease(third)).status_code == 403


async def test_an_integration_shows_its_redirect_uri_and_never_its_secret(api: Api, admin: str):
    made = await put(api, admin, GITLAB)
    assert made.status_code == 201, made.text
    it = made.json()
    assert it["redirect_uri"] == f"https://evergrant.test/oauth/callback/{it['id']}"
    assert (it["has_client_secret"], it["state"]) == (True, "ready")
    listed = await api.get("/v1/integrations", admin)
    shown = await api.get("/v1/integrations/crm", admin)
    for answer in (made, listed, shown):
        assert "canary-secret" not in answer.text


async def test_the_redirect_uri_is_there_before_the_client(api: Api, admin: str):
    first = (await put(api, admin, {"provider": "gitlab"})).json()
    assert (first["state"], first["client_id"]) == ("failed", "")
    assert "put its client id" in first["problem"]
    app = await api.app_with("web", Action.CONNECT)
    refused = await api.post("/v1/connections", app, {"integration": "crm", "subject": "alice"})
    assert (refused.status_code, refused.json()["code"]) == (424, "client_rejected")
    assert refused.json()["detail"] == first["problem"]
    nameless = await put(api, admin, {"provider": "gitlab", "client_id": "client-1"})
    assert (nameless.status_code, nameless.json()["field"]) == (400, "client_secret")
    ready = (await put(api, admin, GITLAB)).json()
    assert (ready["state"], ready["problem"], ready["redirect_uri"]) == ("ready", None, first["redirect_uri"])
    lost = await put(api, admin, {"provider": "gitlab"})
    assert (lost.status_code, lost.json()["field"]) == (400, "client_id")


async def test_changing_keeps_the_secret_and_the_id(api: Api, admin: str):
    first = (await put(api, admin, GITLAB)).json()
    body = {"provider": "gitlab", "client_id": "client-1"}
    second = await put(api, admin, {**body, "scope_ceiling": ["api"], "refresh": {"rotation": "none"}})
    assert second.status_code == 200, second.text
    it = second.json()
    assert (it["id"], it["has_client_secret"], it["scope_ceiling"]) == (first["id"], True, ["api"])
    assert it["refresh"]["rotation"] == "none"
    public = await put(api, admin, {**body, "client_auth": "none"})
    assert public.json()["has_client_secret"] is False


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({**GITLAB, "provider": "nobody"}, "provider_unknown", "provider"),
        ({"provider": "gitlab", "client_id": "c"}, "invalid_request", "client_secret"),
        ({**GITLAB, "client_secret": " "}, "invalid_request", "client_secret"),
        ({**GITLAB, "issuer": "https://idp.example"}, "invalid_request", "issuer"),
        ({**GENERIC, "issuer": None}, "invalid_request", "issuer"),
        ({**GITLAB, "params": {"x": "y"}}, "invalid_request", "params.x"),
        ({**GITLAB, "default_scopes": ["api"], "scope_ceiling": []}, "invalid_request", "default_scopes"),
        ({**GITLAB, "client_auth": "plain"}, "invalid_request", "client_auth"),
    ],
)
async def test_bad_integrations_name_their_field_and_write_nothing(api: Api, admin: str, body, code, field):
    answer = await put(api, admin, body)
    assert (answer.json()["code"], answer.json()["field"]) == (code, field), answer.text
    assert "canary-secret" not in answer.text
    assert (await api.get("/v1/integrations/crm", admin)).status_code == 404


async def test_an_unknown_provider_is_answered_with_similar_names(api: Api, admin: str):
    detail = (await put(api, admin, {**GITLAB, "provider": "gitlba"})).json()["detail"]
    assert detail.startswith("no provider is called 'gitlba'; similar: gitlab")


async def test_an_issuer_is_discovered_by_a_worker_and_pinned(api: Api, admin: str):
    discovers(api)
    made = await put(api, admin, GENERIC)
    assert (made.status_code, made.json()["state"]) == (201, "ready"), made.text
    again = await put(api, admin, {**GENERIC, "default_scopes": ["read"]})
    assert (again.status_code, again.json()["state"]) == (200, "ready")
    assert len(api.link.discoveries) == 1
    assert (await stored(api)).endpoints == ENDPOINTS


async def test_a_failed_discovery_is_said_and_can_be_tried_again(api: Api, admin: str):
    discovers(api, ErrorCode.DISCOVERY_FAILED)
    failed = await put(api, admin, GENERIC)
    assert (failed.status_code, failed.json()["code"]) == (424, "discovery_failed")
    assert (await api.get("/v1/integrations/crm", admin)).json()["state"] == "failed"
    discovers(api)
    assert (await put(api, admin, GENERIC)).json()["state"] == "ready"
    api.link.up = False
    away = await put(api, admin, {**GENERIC, "issuer": "https://two.example"}, "two")
    assert (away.status_code, away.json()["code"]) == (503, "temporal_unavailable")


async def test_an_issuer_is_checked_before_there_is_a_client(api: Api, admin: str):
    """A wrong URL is told before anybody has registered a client, or typed its secret."""
    without_client = {"provider": "generic", "issuer": GENERIC["issuer"]}
    discovers(api, ErrorCode.DISCOVERY_FAILED)
    refused = await put(api, admin, without_client)
    assert (refused.status_code, refused.json()["code"]) == (424, "discovery_failed")
    discovers(api, state=IntegrationState.FAILED)
    reserved = (await put(api, admin, without_client)).json()
    assert (reserved["state"], "put its client id" in reserved["problem"]) == ("failed", True)
    discovers(api, problem=None)
    assert (await put(api, admin, GENERIC)).json()["state"] == "ready"


async def test_secrets_and_tokens_are_never_redirected_to_another_server(api: Api, admin: str):
    """A new issuer needs the secret again, and no live connection at all."""
    discovers(api)
    await put(api, admin, GENERIC)
    evil = {"provider": "generic", "client_id": "client-1", "issuer": "https://evil.example"}
    refused = await put(api, admin, evil)
    assert (refused.status_code, refused.json()["field"]) == (400, "client_secret")
    await api.active(await stored(api))
    refused = await put(api, admin, {**evil, "client_secret": "mine"})
    assert (refused.status_code, refused.json()["field"]) == (400, "provider")
    assert (await stored(api)).issuer == "https://idp.example"


async def test_an_integration_is_deleted_once_its_connections_have_ended(api: Api, admin: str):
    discovers(api)
    await put(api, admin, GENERIC)
    connection = await api.active(await stored(api))
    refused = await api.call("DELETE", "/v1/integrations/crm", admin)
    assert (refused.status_code, refused.json()["code"]) == (409, "integration_in_use")
    assert "Revoke them" in refused.json()["repair"]
    async with api.store.write() as tx:
        current = await tx.connections.get(connection.tenant, connection.id)
        assert current is not None
        ended = current.model_copy(update={"state": LifecycleState.REVOKED})
        await tx.connections.replace(ended, expected=current.revision)
    assert (await api.call("DELETE", "/v1/integrations/crm", admin)).status_code == 204


async def test_an_integration_says_until_when_its_refreshes_use_the_limit_of_its_provider(
    api: Api, admin: str
):
    await put(api, admin, {**GITLAB, "provider": "github-app"})
    connection = await api.active(await stored(api))
    at, span = api.clock.now(), timedelta(seconds=72)  # thirty in it are three quarters of 2,000 an hour
    for number in range(30):
        view = (await api.get("/v1/integrations/crm", admin)).json()
        assert view["refreshes_postponed_until"] is None
        async with api.worker.write() as tx:
            attempt = an_attempt(connection, integration_id=connection.integration_id)
            await tx.attempts.open(attempt)
            await tx.attempts.close(attempt, AttemptOutcome.INSTALLED, at + number * span / 60)
    view = (await api.get("/v1/integrations/crm", admin)).json()
    assert datetime.fromisoformat(view["refreshes_postponed_until"]) == at + span


async def test_apps_permits_and_keys_live_and_die(api: Api, admin: str):
    assert (await api.call("PUT", "/v1/apps/pipeline", admin, json={})).status_code == 201
    assert (await api.call("PUT", "/v1/apps/pipeline", admin, json={"disabled": False})).status_code == 200
    permit = {"integration": "crm", "subjects": ["user-1"], "actions": ["token"]}
    at = "/v1/apps/pipeline/permits/crm"
    assert (await api.call("PUT", at, admin, json=permit)).status_code == 201
    assert (await api.call("PUT", at, admin, json=permit)).status_code == 200
    assert (await api.get(at, admin)).json()["subjects"] == ["user-1"]
    headers = {"Idempotency-Key": "k"}
    made = [await api.post("/v1/apps/pipeline/keys", admin, headers=headers) for _ in range(2)]
    assert made[0].json() == made[1].json()
    key = made[0].json()["key"]
    await api.active(await api.integration())
    assert (await api.lease(key)).status_code == 200
    assert (await api.call("DELETE", at, admin)).status_code == 204
    assert (await api.call("DELETE", at, admin)).status_code == 404
    assert (await api.lease(key)).status_code == 404
    assert (await api.call("DELETE", "/v1/apps/pipeline", admin)).status_code == 204
    assert (await api.lease(key)).status_code == 401
    actions = [it["action"] for it in (await api.get("/v1/audit?limit=500", admin)).json()["items"]]
    for action in ("app.put", "permit.put", "key.created", "permit.deleted", "app.deleted"):
        assert action in actions
    assert (await audit.verify_log(api.worker, TENANT)).ok


@pytest.mark.parametrize("subject", ["*a", "team-*-bot", "**"])
async def test_a_subject_that_looks_like_another_pattern_is_refused(api: Api, admin: str, subject: str):
    """It would be taken literally, and permit something else than it says."""
    await api.call("PUT", "/v1/apps/pipeline", admin, json={})
    permit = {"integration": "crm", "subjects": ["alice", subject], "actions": ["token"]}
    at = "/v1/apps/pipeline/permits/crm"
    refused = await api.call("PUT", at, admin, json=permit)
    assert (refused.status_code, refused.json()["field"]) == (400, "subjects.1")
    assert "only its last character may be *" in refused.json()["detail"]
    assert (await api.get(at, admin)).status_code == 404
    assert (await api.call("PUT", at, admin, json=permit | {"subjects": ["*"]})).status_code == 201


async def test_an_admin_can_not_lock_itself_out(api: Api, admin: str):
    assert (await api.call("DELETE", "/v1/apps/admin", admin)).status_code == 400
    assert (await api.call("PUT", "/v1/apps/admin", admin, json={"disabled": True})).status_code == 400
    assert (await api.get("/v1/apps", admin)).status_code == 200


# --- `PUT /v1/integrations/{i}` without a client id -------------------------------------------

ISSUER = "https://idp.example"
DYNAMIC = {"provider": "generic", "issuer": ISSUER, "registration": "dynamic"}
DOCUMENT = {**DYNAMIC, "registration": "metadata_document"}


async def test_a_client_id_comes_from_the_issuer(api: Api, admin: str):
    discovers(api, client_id="made-by-the-issuer")
    answer = await put(api, admin, {**DYNAMIC, "initial_access_token": "canary-iat"})
    assert answer.status_code == 201
    assert answer.json()["client_id"] == "made-by-the-issuer"
    assert answer.json()["registration"] == "dynamic"
    assert "canary" not in answer.text
    async with api.worker.read() as tx:
        initial = await tx.integrations.initial_access_token(await stored(api))
    assert initial is not None
    assert initial.reveal() == "canary-iat"


async def test_putting_it_again_keeps_the_registration_and_another_issuer_is_another(api: Api, admin: str):
    discovers(api, client_id="made-by-the-issuer")
    await put(api, admin, DYNAMIC)
    api.link.on_job.clear()
    answer = await put(api, admin, {**DYNAMIC, "default_scopes": ["read"]})
    assert (answer.status_code, answer.json()["client_id"]) == (200, "made-by-the-issuer")
    discovers(api, client_id="made-by-the-second")
    answer = await put(api, admin, {**DYNAMIC, "issuer": "https://other.example"})
    assert answer.json()["client_id"] == "made-by-the-second"


async def test_a_document_about_us_is_at_our_client_id(api: Api, admin: str):
    discovers(api)
    client_id = (await put(api, admin, DOCUMENT)).json()["client_id"]
    assert client_id == f"{api.parts.settings.public_url}/oauth/client/{(await stored(api)).id}"
    shown = await api.get(client_id.removeprefix(api.parts.settings.public_url))
    assert shown.json()["client_id"] == client_id
    assert shown.json()["token_endpoint_auth_method"] == "none"
    assert shown.json()["redirect_uris"] == [api.parts.redirect_uri((await stored(api)).id)]
    assert shown.headers["cache-control"] == "public, max-age=3600"


async def test_no_other_integration_has_a_document(api: Api, admin: str):
    discovers(api, client_id="made-by-the-issuer")
    await put(api, admin, DYNAMIC)
    for what in ((await stored(api)).id, "int_0000000000000000000000", "nothing", "..%2Fkeys"):
        assert (await api.get(f"/oauth/client/{what}")).status_code == 404


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"client_id": "c"}, "client_id"),
        ({"registration": None, "client_secret": "s"}, "client_id"),
        ({"client_secret": "s"}, "client_secret"),
        ({"client_auth": "none"}, "client_auth"),
        ({"provider": "gitlab", "issuer": None}, "registration"),
        ({"registration": "metadata_document", "initial_access_token": "t"}, "initial_access_token"),
        ({"registration": None, "client_id": "c", "initial_access_token": "t"}, "initial_access_token"),
    ],
)
async def test_what_does_not_fit_a_registration_is_refused(api: Api, admin: str, changes: dict, field: str):
    answer = await put(api, admin, DYNAMIC | changes)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


async def test_where_the_api_of_a_server_is_may_be_a_host_that_egress_allows(api: Api, admin: str):
    discovers(api)
    for url, said in (
        ("http://localhost:9000/v1", "EVERGRANT_EGRESS_ALLOW=localhost:9000"),
        ("ftp://a.example", "must match"),
        ("https://api.example/v1?x=1", "must not hold"),
    ):
        refused = await put(api, admin, {**GENERIC, "params": {"api_base_url": url}})
        assert refused.status_code == 400
        assert refused.json()["field"] == "params.api_base_url"
        assert said in refused.json()["detail"]
    unknown = await put(api, admin, {**GENERIC, "params": {"api": "https://api.example"}})
    assert "is not a parameter of generic, which has api_base_url" in unknown.json()["detail"]
    made = await put(api, admin, {**GENERIC, "params": {"api_base_url": "https://api.example/v1"}})
    assert (made.status_code, made.json()["params"]) == (201, {"api_base_url": "https://api.example/v1"})
