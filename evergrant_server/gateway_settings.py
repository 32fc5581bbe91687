"""The settings of the gateway."""

from datetime import timedelta

from pydantic import ConfigDict, Field

from evergrant_server.core.model import CheckedModel
from evergrant_server.setting_types import Duration


class GatewaySettings(CheckedModel):
    """Where the gateway listens, and how long calls may take."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    gateway_host: str = "127.0.0.1"
    """The address the gateway listens on."""
    gateway_port: int = Field(default=8483, ge=1, le=65535)
    """The port the gateway listens on."""
    gateway_public_url: str = ""
    """The URL at which apps reach the gateway; empty: http://gateway_host:gateway_port. It must not be an
    origin of the API's: providers' pages would run beside the console."""
    gateway_envoy_port: int = Field(default=0, ge=0, le=65535)
    """The port of the gateway's gRPC service for Envoy's external authorization, on gateway_host; 0: none."""
    gateway_silence: Duration = timedelta(minutes=5)
    """How long a provider's API may send nothing before the gateway ends the call, also in a stream."""
    gateway_drain: Duration = timedelta(seconds=30)
    """How long calls may go on once the gateway is told to stop."""
    gateway_calls_per_app: int = Field(default=256, ge=1)
    """Calls that one app may have open at once in one gateway process; more are answered with 429."""
