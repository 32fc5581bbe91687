"""Each kind of caller, and what it may do: observed on every route, in a tenant with one of everything."""

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from evergrant_server.core.access import Action
from evergrant_server.core.ids import Tenant
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import Api, running_api
from tests.fakes.rows import disable_tenant
from tests.security.isolation.routes import PROVED_OTHERWISE, requests_to, routes
from tests.security.isolation.world import a_world
from tests.security.people import put_session

CALLER = "caller"
Headers = dict[str, str]
Role = Callable[[Api, Tenant], Awaitable[Headers]]


def bearer(key: str) -> Headers:
    return {"Authorization": f"Bearer {key}"}


async def _nobody(api: Api, tenant: Tenant) -> Headers:
    return {}


async def _disabled(api: Api, tenant: Tenant) -> Headers:
    key = await api.app_with(CALLER, *Action, tenant=tenant)
    async with api.worker.write() as tx:
        app = await tx.access.app_by_name(tenant, CALLER)
        assert app is not None
        await tx.access.put_app(app.model_copy(update={"disabled": True}), expected=app.revision)
    return bearer(key)


async def _of_disabled_tenant(api: Api, tenant: Tenant) -> Headers:
    key = await api.app_with(CALLER, *Action, tenant=tenant)
    async with api.worker.write() as tx:
        await disable_tenant(tx, tenant)
    return bearer(key)


async def _without_permit(api: Api, tenant: Tenant) -> Headers:
    return bearer(await api.app_with(CALLER, tenant=tenant))


def _with(*actions: Action, integration: str = "*", subject: str = "*") -> Role:
    async def made(api: Api, tenant: Tenant) -> Headers:
        covers = {"integration": integration.format(tenant), "subjects": (subject.format(tenant),)}
        return bearer(await api.app_with(CALLER, *actions, tenant=tenant, **covers))

    return made


def _person(role: PersonRole) -> Role:
    async def made(api: Api, tenant: Tenant) -> Headers:
        return bearer((await put_session(api, tenant, role))[1])

    return made


ROLES: dict[str, Role] = {
    "no credential": _nobody,
    "disabled app": _disabled,
    "disabled tenant": _of_disabled_tenant,
    "no permit": _without_permit,
    **{action.value: _with(action) for action in Action},
    **{f"person: {role.value}": _person(role) for role in PersonRole},
    "admin of one integration": _with(Action.ADMIN, integration="integration-of-{}"),
    "admin of one subject": _with(Action.ADMIN, subject="subject-of-{}"),
}


async def observe(api: Api) -> dict[str, list[str]]:
    """What each route answers to each role: the status, and the code of a problem."""
    api.refreshes_with(*(f"at-{number}" for number in range(2, 100)))
    found: dict[str, list[str]] = {}
    for number, role in enumerate(ROLES.values()):
        tenant = Tenant(f"tenant-{number}")
        own = await a_world(api, tenant)
        headers = await role(api, tenant)
        # what ends a thing comes after what uses it
        for route in sorted(routes(api.app), key=is_last):
            if route not in PROVED_OTHERWISE and " /console" not in route:
                sent = requests_to(route)[0].sent(own)
                answer = await api.client.request(**sent | {"headers": sent["headers"] | headers})
                problem = "" if answer.is_success else f" {answer.json()['code']}"
                found.setdefault(route, []).append(f"{answer.status_code}{problem}")
    return found


def is_last(route: str) -> tuple[bool, int]:
    ends = route.startswith("DELETE") or route.endswith("/revoke")
    return ends, -len(route)


def observed() -> dict[str, list[str]]:
    """The same of an API of its own, for the page."""

    async def run() -> dict[str, list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            async with running_api(Path(folder)) as api:
                return await observe(api)

    logging.disable(logging.WARNING)  # alarms, about what the roles do
    try:
        return asyncio.run(run())
    finally:
        logging.disable(logging.NOTSET)
