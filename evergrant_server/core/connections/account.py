"""The accounts that a grant reaches at the provider, and which one the connection is for. Pure."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class FollowUp(StrEnum):
    """What is still open after a new grant."""

    LOOKING_UP = "looking_up"  # the worker requests the accounts from the provider
    CHOOSING = "choosing"  # there are several: the subject or the app chooses one


class AccountOption(BaseModel):
    """One account that the grant reaches. `metadata` becomes the connection's when it is chosen."""

    model_config = ConfigDict(frozen=True)

    id: str
    label: str
    metadata: dict[str, Any] = {}


def matching_option(options: tuple[AccountOption, ...], choice: str | None) -> AccountOption | None:
    """The only account, or the one with the id `choice`; None when one has to be chosen."""
    if len(options) == 1:
        return options[0]
    return next((option for option in options if option.id == choice), None)
