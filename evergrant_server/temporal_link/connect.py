"""Connects to Temporal with the data converter of our workflows, and prepares a namespace for workers:
the namespace itself, its search attributes and its retention."""

import asyncio
import importlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

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
from temporalio.converter import DataConverter, DefaultFailureConverter, PayloadCodec
from temporalio.envconfig import ClientConfig
from temporalio.plugin import SimplePlugin
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.names import SearchAttribute
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.telemetry import traces
from evergrant_server.temporal_link.received import DATA_CONVERTER
from evergrant_server.temporal_link.runs import call_temporal, find_in_temporal
from evergrant_server.temporal_link.stories import StoryCodec, StoryFailureConverter, StoryKeys

_NOT_THERE = (
    "Start it, or correct EVERGRANT_TEMPORAL_ADDRESS: the port of its frontend (7233), not of its UI. If it "
    "needs TLS or an API key, set TEMPORAL_ADDRESS and TEMPORAL_TLS=true or TEMPORAL_API_KEY in its place."
)
_REPAIR = "Run: python -m evergrant_server db upgrade"


async def connect(
    settings: Settings, store: Store | None = None, *, lazy: bool = False, **options: Any
) -> Client:
    """Connect a client to the configured namespace; with the store it reads and writes sealed stories.

    The address comes from `temporal_address`, else from Temporal's own environment and profile
    file (`temporalio.envconfig`), which also configure TLS and API keys. Raises BadSettings for a
    bad profile or codec, and Failure TEMPORAL_UNAVAILABLE unless `lazy`.
    """
    profile: dict[str, Any] = {}
    if not settings.temporal_address:
        try:
            profile = dict(ClientConfig.load_client_connect_config(profile=settings.temporal_profile))
        except RuntimeError as error:
            repair = "correct Temporal's profile file, or unset it"
            raise BadSettings(f"EVERGRANT_TEMPORAL_PROFILE: {error}; {repair}") from None
    target = settings.temporal_address or profile.pop("target_host", "127.0.0.1:7233")
    profile["namespace"] = (
        settings.temporal_namespace
        if settings.temporal_address
        else profile.get("namespace", settings.temporal_namespace)
    )
    converter = DATA_CONVERTER if store is None else _story_converter(settings, store, profile["namespace"])
    try:
        return await Client.connect(target, data_converter=converter, lazy=lazy, **profile, **options)
    except RuntimeError:
        why = f"no Temporal server answers at {target}"
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, why, repair=_NOT_THERE) from None


def _story_converter(settings: Settings, store: Store, namespace: str) -> DataConverter:
    seals = settings.seal_histories
    codec = StoryCodec(StoryKeys(store), namespace, users_codec(settings.temporal_codec), seals=seals)
    failures = StoryFailureConverter if seals else DefaultFailureConverter
    return replace(DATA_CONVERTER, payload_codec=codec, failure_converter_class=failures)


def users_codec(name: str) -> PayloadCodec | None:
    """The codec `module:attribute` of `EVERGRANT_TEMPORAL_CODEC`. Raises BadSettings."""
    if not name:
        return None
    module, _, attribute = name.partition(":")
    try:
        codec = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadSettings(
            f"EVERGRANT_TEMPORAL_CODEC: {name} can't be imported ({type(error).__name__}); name it "
            "`module:attribute`, in a module on this process's PYTHONPATH"
        ) from None
    codec = codec() if isinstance(codec, type) else codec
    if not isinstance(codec, PayloadCodec):
        raise BadSettings(f"EVERGRANT_TEMPORAL_CODEC: {name} is no temporalio.converter.PayloadCodec")
    return codec


def client_plugins() -> list[SimplePlugin]:
    """Plugins for the client, which pass to its workers; empty when this process doesn't trace."""
    if not traces.is_enabled():
        return []
    from temporalio.contrib.opentelemetry import OpenTelemetryPlugin  # slow to import

    return [OpenTelemetryPlugin(add_temporal_spans=True)]


async def prepare_namespace(client: Client, retention: timedelta) -> None:
    """Register the namespace and its search attributes, and raise its retention to `retention`.

    Does nothing the second time. Raises Failure TEMPORAL_UNAVAILABLE.
    """
    current = await get_retention(client)
    if current is None:
        await _register_namespace(client, retention)
        current = await get_retention(client)
    if await missing_search_attributes(client):
        await _register_search_attributes(client)
    if current is not None and current < retention:
        await _set_retention(client, retention)


async def require_prepared_namespace(client: Client) -> None:
    """Raise Failure TEMPORAL_UNAVAILABLE, with the repair, when a worker couldn't work here."""
    missing = await missing_search_attributes(client)
    if missing is None:
        detail = f"the namespace {client.namespace} doesn't exist. {_REPAIR}"
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, detail)
    if missing:
        detail = (
            f"the namespace {client.namespace} lacks the search attributes {', '.join(missing)}. {_REPAIR}"
        )
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, detail)


async def missing_search_attributes(client: Client) -> list[str] | None:
    """The search attributes that the namespace lacks; None when there is no such namespace.

    Raises Failure TEMPORAL_UNAVAILABLE.
    """
    request = ListSearchAttributesRequest(namespace=client.namespace)
    answer = await find_in_temporal(client.operator_service.list_search_attributes(request))
    return (
        None if answer is None else [name for name in SearchAttribute if name not in answer.custom_attributes]
    )


async def get_retention(client: Client) -> timedelta | None:
    """How long the namespace keeps closed runs; None when there is no such namespace.

    Raises Failure TEMPORAL_UNAVAILABLE.
    """
    request = DescribeNamespaceRequest(namespace=client.namespace)
    answer = await find_in_temporal(client.workflow_service.describe_namespace(request))
    return None if answer is None else answer.config.workflow_execution_retention_ttl.ToTimedelta()


async def _register_namespace(client: Client, retention: timedelta) -> None:
    request = RegisterNamespaceRequest(
        namespace=client.namespace,
        workflow_execution_retention_period=_duration(retention),
        description="Evergrant",
    )
    try:
        await client.workflow_service.register_namespace(request)
    except RPCError as error:
        _raise_unless_exists(error, client)
    async with asyncio.timeout(60):  # Temporal's services cache namespaces for a few seconds
        while await missing_search_attributes(client) is None:
            await asyncio.sleep(0.2)


async def _register_search_attributes(client: Client) -> None:
    missing = await missing_search_attributes(client) or []
    request = AddSearchAttributesRequest(
        namespace=client.namespace,
        search_attributes=dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD),
    )
    try:
        await client.operator_service.add_search_attributes(request)
    except RPCError as error:
        _raise_unless_exists(error, client)
    async with asyncio.timeout(30):
        while await missing_search_attributes(client):
            await asyncio.sleep(0.1)


async def _set_retention(client: Client, retention: timedelta) -> None:
    config = NamespaceConfig(workflow_execution_retention_ttl=_duration(retention))
    request = UpdateNamespaceRequest(namespace=client.namespace, config=config)
    await call_temporal(client.workflow_service.update_namespace(request))


def _raise_unless_exists(error: RPCError, client: Client) -> None:
    """Ignore that another process registered the same first."""
    if error.status is not RPCStatusCode.ALREADY_EXISTS:
        detail = f"namespace {client.namespace} can't be prepared: {error.status.name}"
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, detail) from None


def _duration(value: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(value)
    return duration
