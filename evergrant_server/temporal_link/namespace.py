"""What a namespace must have before a worker may use it: itself, search attributes, retention."""

import asyncio
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    RegisterNamespaceRequest,
    UpdateNamespaceRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.search_attributes import KEYWORDS


async def prepare_namespace(client: Client, retention: timedelta) -> None:
    """Register what is missing, the namespace too, and raise retention to `retention`.

    Does nothing the second time. Raises Failure TEMPORAL_UNAVAILABLE.
    """
    try:
        await _register_namespace(client, retention)
        await _register_search_attributes(client)
        await _raise_retention(client, retention)
    except RPCError as error:
        raise Failure(
            ErrorCode.TEMPORAL_UNAVAILABLE,
            f"namespace {client.namespace} can't be prepared: {error.status.name}",
        ) from None


async def require_prepared_namespace(client: Client) -> None:
    """Raise Failure TEMPORAL_UNAVAILABLE, with the repair, when a worker couldn't work here."""
    repair = "Run: python -m evergrant_server db upgrade"
    try:
        missing = await missing_search_attributes(client)
    except RPCError as error:
        why = "doesn't exist" if error.status is RPCStatusCode.NOT_FOUND else f"answers {error.status.name}"
        raise Failure(
            ErrorCode.TEMPORAL_UNAVAILABLE, f"the namespace {client.namespace} {why}. {repair}"
        ) from None
    if missing:
        names = ", ".join(missing)
        raise Failure(
            ErrorCode.TEMPORAL_UNAVAILABLE,
            f"the namespace {client.namespace} lacks the search attributes {names}. {repair}",
        )


async def missing_search_attributes(client: Client) -> list[str]:
    """The search attributes that the namespace doesn't have yet."""
    found = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    return [name for name in KEYWORDS if name not in found.custom_attributes]


async def get_retention(client: Client) -> timedelta:
    """How long the namespace keeps closed runs."""
    answer = await client.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace=client.namespace)
    )
    return answer.config.workflow_execution_retention_ttl.ToTimedelta()


async def _register_namespace(client: Client, retention: timedelta) -> None:
    try:
        await get_retention(client)
        return
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
    ttl = Duration()
    ttl.FromTimedelta(retention)
    asked = RegisterNamespaceRequest(
        namespace=client.namespace, workflow_execution_retention_period=ttl, description="Evergrant"
    )
    try:
        await client.workflow_service.register_namespace(asked)
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:  # another process was faster
            raise
    async with asyncio.timeout(60):  # servers look up namespaces in a cache of a few seconds
        while not await _is_visible(client):
            await asyncio.sleep(0.2)


async def _is_visible(client: Client) -> bool:
    try:
        await missing_search_attributes(client)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return True


async def _register_search_attributes(client: Client) -> None:
    missing = await missing_search_attributes(client)
    if not missing:
        return
    try:
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=client.namespace,
                search_attributes=dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD),
            )
        )
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:  # another process was faster
            raise
    async with asyncio.timeout(30):
        while await missing_search_attributes(client):
            await asyncio.sleep(0.1)


async def _raise_retention(client: Client, retention: timedelta) -> None:
    if await get_retention(client) >= retention:
        return
    ttl = Duration()
    ttl.FromTimedelta(retention)
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=client.namespace,
            config=NamespaceConfig(workflow_execution_retention_ttl=ttl),
        )
    )
