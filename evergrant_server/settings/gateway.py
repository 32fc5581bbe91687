"""Settings of the gateway: where it listens, how long calls may take, and its clients' tokens last."""

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from evergrant_server.core.model import CheckedModel
from evergrant_server.settings.types import Duration, read_duration


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
    gateway_limit_wait: Annotated[timedelta, BeforeValidator(read_duration), Field(ge=timedelta(0))] = (
        timedelta(seconds=2)
    )
    """How long a call waits for its turn where a provider's API takes no more, or no more of this app's; who
    would wait longer is answered with 429 at once. 0: no call waits."""
    gateway_processes: int = Field(default=1, ge=1, le=1000)
    """Gateway processes that serve at the same time: each keeps to its part of the limits that definitions
    name. What replies say of limits is of all."""


class OAuthSettings(CheckedModel):
    """How long the tokens of clients are accepted, and repetitions of used refresh tokens."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    oauth_access_token_lifetime: Duration = timedelta(hours=8)
    """How long an access token of a gateway's client is accepted. Each request reads it from the store, so it
    can be revoked at once."""
    oauth_idle: Duration = timedelta(days=30)
    """How long an authorization of a gateway's client may go without a refresh until it ends."""
    oauth_lifetime: Duration = timedelta(days=180)
    """The age at which such an authorization ends, however often it is used."""
    oauth_replay_window: Annotated[timedelta, BeforeValidator(read_duration), Field(ge=timedelta(0))] = (
        timedelta(minutes=10)
    )
    """How long a used refresh token of a client without a key may come again, and gets the same successor:
    processes that share one file of tokens refresh at once, and some late. 0: not at all."""
    oauth_replays: int = Field(default=10, ge=0)
    """How often one used refresh token may come again within that time; three times of these after the first
    minute."""
