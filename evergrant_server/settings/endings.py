"""How long what ends something waits: for a person who may undo it, and for providers."""

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from evergrant_server.core.model import CheckedModel
from evergrant_server.settings.types import Duration, read_duration


class EndingSettings(CheckedModel):
    """Waits of erasures, incidents and offboardings."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    erasure_wait: Duration = timedelta(days=30)
    """How long an erasure waits for a provider. Then it erases all the same, and counts it as unconfirmed."""
    incident_wait: Duration = timedelta(days=1)
    """How long an incident or an offboarding waits for providers, until its report says how far each
    connection is."""
    offboarding_grace: Annotated[timedelta, BeforeValidator(read_duration), Field(ge=timedelta(0))] = (
        timedelta(days=1)
    )
    """How long the connections of a person who leaves are stopped before they are revoked, and can be put
    back. A tenant's rule may say otherwise. 0: they are revoked at once."""
