"""Connects to Temporal with the data converter of our workflows."""

from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.plugin import SimplePlugin

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.telemetry import traces


async def connect(settings: Settings, *, lazy: bool = False, **options: Any) -> Client:
    """Connect a client to the configured namespace.

    The address comes from `temporal_address`, else from Temporal's own environment and profile
    file (`temporalio.envconfig`), which also configure TLS and API keys. Raises BadSettings for a
    bad profile, and Failure TEMPORAL_UNAVAILABLE unless `lazy`.
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
    try:
        return await Client.connect(
            target, data_converter=pydantic_data_converter, lazy=lazy, **profile, **options
        )
    except RuntimeError:
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, f"no Temporal server answers at {target}") from None


def client_plugins() -> list[SimplePlugin]:
    """Plugins for the client, which pass to its workers; empty when this process doesn't trace."""
    if not traces.is_enabled():
        return []
    from temporalio.contrib.opentelemetry import OpenTelemetryPlugin  # slow to import

    return [OpenTelemetryPlugin(add_temporal_spans=True)]
