"""`/scim/v2`: the tenant's directory tells who comes and leaves (SCIM 2.0, RFC 7643, RFC 7644). Users only.

Who deactivates or deletes a user begins an offboarding; who activates one within its grace undoes it. An app
needs the action `directory` for the whole tenant, and can do nothing else with it.
"""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter
from scim2_models import (
    Context,
    InvalidFilterException,
    ListResponse,
    NotFoundException,
    NotImplementedException,
    PatchOp,
    Resource,
    ResourceType,
    Schema,
    SearchRequest,
    UniquenessException,
)
from starlette.exceptions import HTTPException
from starlette.responses import Response

from evergrant_server.access import leavers as orders
from evergrant_server.access.leavers import LeaverOrder, grace_of
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.leavers.scim_http import (
    DirectoryCall,
    ScimRoute,
    payload_of,
    read_resource,
    scim_answer,
)
from evergrant_server.api.leavers.scim_resources import (
    MOST_LISTED,
    POLICY,
    ROOT,
    ScimUser,
    members_of,
    resource_of,
    resource_types,
    schemas,
    service_provider_config,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.incidents import IncidentState
from evergrant_server.core.ids import DirectoryUserId, is_id, new_id
from evergrant_server.core.people.leavers import DirectoryUser, person_of_user, user_key
from evergrant_server.core.text import is_storable_text
from evergrant_server.store import Transaction

_BY_NAME = re.compile(
    r'^(?:urn:ietf:params:scim:schemas:core:2\.0:User:)?userName eq ("(?:[^"\\]|\\.)*")\Z', re.I
)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_LAST = 2**31 - 1  # of rows that a database counts
_TRIES = 100  # to stop somebody must succeed on a busy row

T = TypeVar("T")
Read = TypeVar("Read", bound=Resource[Any])


router = APIRouter(include_in_schema=False, route_class=ScimRoute)


# --- users --------------------------------------------------------------------------------------


@router.post(f"{ROOT}/Users")
async def create_user(call: DirectoryCall) -> Response:
    """Add a user (RFC 7644 section 3.3). One that comes inactive has nothing to end."""
    resource = await read_resource(call, ScimUser, Context.RESOURCE_CREATION_REQUEST)

    async def add(tx: Transaction) -> DirectoryUser:
        id = DirectoryUserId(new_id("usr"))
        moments = {"created_at": call.now, "changed_at": call.now}
        user = DirectoryUser(tenant=call.tenant, id=id, **moments, **members_of(resource))
        user = await _ruled(tx, user)
        await _require_free(tx, user)
        user = await tx.directory_users.put(user, expected=None)
        await call.record(tx, AuditAction.DIRECTORY_USER_PUT, user.id, active=user.active is not False)
        return user

    made = _shown(call, await call.write(add))
    location = "" if made.meta is None else str(made.meta.location)
    return scim_answer(made, Context.RESOURCE_CREATION_RESPONSE, 201, Location=location)


@router.get(f"{ROOT}/Users")
async def list_users(call: DirectoryCall) -> Response:
    """Users by id, or the one with a `userName` (RFC 7644 section 3.4.2)."""
    query = dict(call.request.query_params)
    search = SearchRequest[ScimUser].model_validate(query, scim_policy=POLICY)
    return await _listed(call, search)


@router.post(f"{ROOT}/Users/.search")
async def search_users(call: DirectoryCall) -> Response:
    """The same with a body (RFC 7644 section 3.4.3)."""
    payload = await payload_of(call)
    return await _listed(call, SearchRequest[ScimUser].model_validate(payload, scim_policy=POLICY))


@router.post(f"{ROOT}/.search")
async def search_everything(call: DirectoryCall) -> Response:
    """Refused: there are users alone."""
    raise NotImplementedException(detail="There are users alone: search them at /Users/.search.")


async def _listed(call: ApiCall, search: SearchRequest[ScimUser]) -> Response:
    offset = min(search.start_index_0 or 0, _LAST)
    limit = MOST_LISTED if search.count is None else min(search.count, MOST_LISTED)
    async with call.api.store.read() as tx:
        if search.filter is None:
            total = await tx.directory_users.count(call.tenant)
            users = await tx.directory_users.listed(call.tenant, offset, limit) if limit else []
        else:
            user = await tx.directory_users.by_key(call.tenant, user_key(_name_in(str(search.filter))))
            total = 0 if user is None else 1
            users = [] if user is None or offset or not limit else [user]
    listed = ListResponse[ScimUser](
        total_results=total,
        start_index=offset + 1,
        items_per_page=len(users),
        resources=[_shown(call, user) for user in users],
    )
    return scim_answer(listed, Context.RESOURCE_QUERY_RESPONSE, response_parameters=search)


def _name_in(text: str) -> str:
    """The name of a filter by `userName`. Raises SCIMException for any other filter."""
    match = _BY_NAME.match(text)
    if match is None or not is_storable_text(json.loads(match[1])):
        raise InvalidFilterException(detail='Users are found by one filter alone: userName eq "…".')
    return json.loads(match[1])


@router.get(f"{ROOT}/Users/{{user_id}}")
async def get_user(user_id: str, call: DirectoryCall) -> Response:
    """One user (RFC 7644 section 3.4.1)."""
    query = dict(call.request.query_params)
    search = SearchRequest[ScimUser].model_validate(query, scim_policy=POLICY)
    async with call.api.store.read() as tx:
        user = await _user(tx, call, user_id)
    return scim_answer(_shown(call, user), Context.RESOURCE_QUERY_RESPONSE, response_parameters=search)


@router.put(f"{ROOT}/Users/{{user_id}}")
async def replace_user(user_id: str, call: DirectoryCall) -> Response:
    """Replace a user (RFC 7644 section 3.5.1)."""
    resource = await read_resource(call, ScimUser, Context.RESOURCE_REPLACEMENT_REQUEST)

    async def replace(tx: Transaction) -> DirectoryUser:
        before = await _user(tx, call, user_id)
        resource.replace(_shown(call, before))
        return await _change(tx, call, before, resource)

    return scim_answer(_shown(call, await _written(call, replace)), Context.RESOURCE_REPLACEMENT_RESPONSE)


@router.patch(f"{ROOT}/Users/{{user_id}}")
async def patch_user(user_id: str, call: DirectoryCall) -> Response:
    """Change some attributes of a user (RFC 7644 section 3.5.2)."""
    payload = await payload_of(call)
    wanted = PatchOp[ScimUser].model_validate(
        payload, scim_ctx=Context.RESOURCE_PATCH_REQUEST, scim_policy=POLICY
    )

    async def patch(tx: Transaction) -> DirectoryUser:
        before = await _user(tx, call, user_id)
        resource = _shown(call, before)
        wanted.patch(resource, POLICY)
        return await _change(tx, call, before, resource)

    return scim_answer(_shown(call, await _written(call, patch)), Context.RESOURCE_PATCH_RESPONSE)


@router.delete(f"{ROOT}/Users/{{user_id}}")
async def delete_user(user_id: str, call: DirectoryCall) -> Response:
    """Delete a user, whose offboarding begins (RFC 7644 section 3.6)."""

    async def delete(tx: Transaction) -> None:
        user = await _user(tx, call, user_id)
        await _leave(tx, call, user, "deleted by SCIM")
        await tx.directory_users.delete(user)
        await call.record(tx, AuditAction.DIRECTORY_USER_DELETED, user.id)

    await _written(call, delete)
    return Response(status_code=204)


async def _written(call: ApiCall, work: Callable[[Transaction], Coroutine[Any, Any, T]]) -> T:
    result = await call.write(work, tries=_TRIES)
    call.api.relay.notify()
    return result


async def _change(tx: Transaction, call: ApiCall, before: DirectoryUser, resource: ScimUser) -> DirectoryUser:
    """Write a user's new attributes, and what follows from `active`."""
    after = before.__replace__(changed_at=before.changed_at, **members_of(resource))
    after = await _ruled(tx, after)
    if after == before:
        return before
    if after.user_key != before.user_key:
        await _require_free(tx, after)
    is_active, was_active = after.active is not False, before.active is not False
    if was_active and not is_active:
        await _leave(tx, call, before, "deactivated by SCIM")
    if is_active and not was_active:
        await _come_back(tx, call, before)
    after = await tx.directory_users.put(after.__replace__(changed_at=call.now), expected=before.revision)
    await call.record(tx, AuditAction.DIRECTORY_USER_PUT, after.id, active=is_active)
    return after


async def _leave(tx: Transaction, call: ApiCall, user: DirectoryUser, reason: str) -> None:
    """Begin the offboarding, or record what it would do where the tenant's rule says that nothing begins by
    itself."""
    rule = await tx.offboarding_rules.of_tenant(call.tenant)
    settings = call.api.settings
    order = LeaverOrder(
        tenant=call.tenant,
        person=person_of_user(user, rule),
        reason=reason,
        grace=grace_of(rule, settings.offboarding_grace),
        wait=settings.incident_wait,
        sponsor=None if rule is None else rule.sponsor,
        context=call.context,
        at=call.now,
        rule=rule,
    )
    if rule is not None and rule.dry_run:
        await orders.record_plan(tx, order)
    else:
        await orders.begin(tx, order)


async def _come_back(tx: Transaction, call: ApiCall, user: DirectoryUser) -> None:
    """Undo an offboarding within its grace: somebody was deactivated by mistake."""
    rule = await tx.offboarding_rules.of_tenant(call.tenant)
    person = tx.ring.subject_hash(call.tenant, person_of_user(user, rule).name)
    incident = await tx.incidents.open_of_person(call.tenant, person)
    if incident is not None and incident.state is IncidentState.HOLDING:
        await orders.undo(tx, call.tenant, incident.id, call.context, call.now)


async def _ruled(tx: Transaction, user: DirectoryUser) -> DirectoryUser:
    """With the subject that the tenant's rule makes of the attributes: the row goes with its erasure."""
    rule = await tx.offboarding_rules.of_tenant(user.tenant)
    return user.__replace__(subject=person_of_user(user, rule).ruled)


async def _require_free(tx: Transaction, user: DirectoryUser) -> None:
    """Raise SCIMException for a name that another user has (RFC 7644 section 3.3.1)."""
    known = await tx.directory_users.by_key(user.tenant, user.user_key)
    if known is not None and known.id != user.id:
        raise UniquenessException(detail="Another user has this userName.")


async def _user(tx: Transaction, call: ApiCall, id: str) -> DirectoryUser:
    """The user of this tenant. Raises SCIMException."""
    user = await tx.directory_users.get(call.tenant, DirectoryUserId(id)) if is_id(id, "usr") else None
    if user is None:
        raise NotFoundException(detail="There is no such user.")
    return user


# --- discovery ----------------------------------------------------------------------------------


@router.get(f"{ROOT}/ServiceProviderConfig")
async def get_service_provider_config(call: DirectoryCall) -> Response:
    """What of SCIM is supported (RFC 7644 section 4)."""
    config = service_provider_config(call.api.settings.public_url)
    return scim_answer(config, Context.RESOURCE_QUERY_RESPONSE)


@router.get(f"{ROOT}/ResourceTypes")
async def list_resource_types(call: DirectoryCall) -> Response:
    types = resource_types(call.api.settings.public_url)
    listed = ListResponse[ResourceType](
        total_results=len(types), start_index=1, items_per_page=len(types), resources=types
    )
    return scim_answer(listed, Context.RESOURCE_QUERY_RESPONSE)


@router.get(f"{ROOT}/ResourceTypes/{{name}}")
async def get_resource_type(name: str, call: DirectoryCall) -> Response:
    return scim_answer(
        _one(resource_types(call.api.settings.public_url), name), Context.RESOURCE_QUERY_RESPONSE
    )


@router.get(f"{ROOT}/Schemas")
async def list_schemas(call: DirectoryCall) -> Response:
    described = schemas(call.api.settings.public_url)
    listed = ListResponse[Schema](
        total_results=len(described), start_index=1, items_per_page=len(described), resources=described
    )
    return scim_answer(listed, Context.RESOURCE_QUERY_RESPONSE)


@router.get(f"{ROOT}/Schemas/{{schema_id}}")
async def get_schema(schema_id: str, call: DirectoryCall) -> Response:
    described = schemas(call.api.settings.public_url)
    return scim_answer(_one(described, schema_id), Context.RESOURCE_QUERY_RESPONSE)


def _one(resources: list[Read], id: str) -> Read:
    """The resource with this id. Raises SCIMException."""
    for resource in resources:
        if resource.id == id:
            return resource
    raise NotFoundException(detail="There is no such document.")


@router.api_route(f"{ROOT}/{{path:path}}", methods=list(_METHODS))
async def refuse(path: str, call: DirectoryCall) -> Response:
    """Another method of a known path, or an unknown path."""
    known = ("ServiceProviderConfig", "ResourceTypes", "Schemas", "Users")
    if path.partition("/")[0] in known:
        raise HTTPException(405, "This path has no such method.")
    raise NotFoundException(detail="Nothing is served at this path: there are users alone.")


def _shown(call: ApiCall, user: DirectoryUser) -> ScimUser:
    return resource_of(user, call.api.settings.public_url)
