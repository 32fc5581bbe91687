"""Whether a stream may go on: the age of an app's access token is overlooked, and nothing else."""

from dataclasses import replace
from datetime import timedelta

import pytest
from starlette.requests import Request

from evergrant_server.access.callers import Caller, PresentedCredential
from evergrant_server.core.access import Action, AppCredential, AuthenticationMethod
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import CredentialId, KeyId, new_id
from evergrant_server.gateway.callers import current_caller
from tests.fakes.api import TENANT, Api, api

__all__ = ["api"]

REQUEST = Request({"type": "http", "headers": [(b"authorization", b"Bearer evg_tok_ended")], "client": None})


async def a_caller(api: Api, method: AuthenticationMethod) -> Caller:
    """An app whose credential was accepted until now."""
    await api.app_with("agent", Action.PROXY)
    app, now = await api.app_named("agent"), api.clock.now()
    id = CredentialId(KeyId(new_id("crd")))
    made = AppCredential(tenant=TENANT, id=id, app_id=app.id, name="main", method=method, created_at=now)
    async with api.worker.write() as tx:
        await tx.credentials.put(made, expected=None)
    return Caller(await api.app_named("agent"), PresentedCredential(id, method, now), (), b"")


async def test_a_token_that_has_aged_ends_no_stream_and_permits_are_read_anew(api: Api):
    caller = await a_caller(api, AuthenticationMethod.PRIVATE_KEY_JWT)
    now = await current_caller(api.parts, REQUEST, caller)
    assert [it.name for it in now.permits] == ["only"]
    younger = replace(caller.credential, valid_until=api.clock.now() + timedelta(minutes=1))
    with pytest.raises(Failure):  # it was ended, not aged
        await current_caller(api.parts, REQUEST, replace(caller, credential=younger))


@pytest.mark.parametrize("ended", ["credential", "app", "agent", "key"])
async def test_what_ends_the_app_ends_its_streams(api: Api, ended: str):
    method = AuthenticationMethod.API_KEY if ended == "key" else AuthenticationMethod.PRIVATE_KEY_JWT
    caller = await a_caller(api, method)
    async with api.worker.write() as tx:
        if ended == "credential":
            made = await tx.credentials.by_name(TENANT, caller.app.id, "main")
            assert made is not None
            await tx.credentials.delete(made)
        elif ended in ("app", "agent"):
            time_is_over = {"sponsor": "app:team", "ends_at": api.clock.now()}
            changes = {"disabled": True} if ended == "app" else time_is_over
            after = caller.app.model_copy(update=changes)
            await tx.access.put_app(after, expected=caller.app.revision)
    with pytest.raises(Failure):
        await current_caller(api.parts, REQUEST, caller)
