"""The settings of what subjects authorize at the gateways."""

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from evergrant_server.core.model import CheckedModel
from evergrant_server.setting_types import Duration, read_duration


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
