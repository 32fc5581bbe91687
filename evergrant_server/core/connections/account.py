"""Which of a subject's accounts at a provider a connection is for. Pure."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class FollowUp(StrEnum):
    """What is open after a grant came; None when nothing is."""

    LOOKING_UP = "looking"  # the provider is asked which accounts there are
    CHOOSING = "choosing"  # there are several, and somebody has to say which


class AccountOption(BaseModel):
    """One account that the grant reaches. `metadata` becomes the connection's when it is chosen."""

    model_config = ConfigDict(frozen=True)

    id: str
    label: str
    metadata: dict[str, Any] = {}


def matching_option(options: tuple[AccountOption, ...], wish: str | None) -> AccountOption | None:
    """The only account there is, or the one that was asked for; None when somebody has to choose."""
    if len(options) == 1:
        return options[0]
    return next((it for it in options if it.id == wish), None)
