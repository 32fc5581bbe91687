"""Durations of the commands, in the forms that settings have."""

from datetime import timedelta
from typing import Annotated

from cyclopts import Parameter

from evergrant_server.setting_types import read_duration

OptionalDuration = Annotated[
    timedelta | None, Parameter(converter=lambda _, tokens: read_duration(tokens[0].value))
]
