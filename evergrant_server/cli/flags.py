"""The flags that commands share, and the settings that they and the environment give."""

import logging
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from evergrant_server.settings import Settings, load_settings
from evergrant_server.settings.types import read_duration

OptionalDuration = Annotated[
    timedelta | None, Parameter(converter=lambda _, tokens: read_duration(tokens[0].value))
]
_SETTINGS = Group("Settings (each is also EVERGRANT_… in the environment)")


@Parameter(name="*", group=_SETTINGS)
@dataclass
class Flags:
    """The settings that operators give most often; the others come from the environment."""

    data_dir: Path | None = None
    database_url: str | None = None
    key_file: Path | None = None
    host: str | None = None
    port: int | None = None
    public_url: str | None = None
    temporal_address: str | None = None
    temporal_port: int | None = None
    temporal_ui_port: int | None = None
    gateway_port: int | None = None
    egress_allow: str | None = None
    log_level: str | None = None

    def settings(self) -> Settings:
        return load_settings(**vars(self))

    def settings_of_dev(self) -> Settings:
        """Those of the installation that `dev` runs here, if it does."""
        from evergrant_server.cli.dev.settings_file import load_settings_of_dev

        return load_settings_of_dev(**vars(self))


def settings_of_process(flags: Flags | None) -> Settings:
    """Load the settings of a process that serves. Before slow imports, so a mistake is reported at once."""
    settings = (flags or Flags()).settings()
    logging.getLogger().setLevel(settings.log_level)
    return settings


def settings_of(flags: Flags | None) -> Settings:
    """Load the settings of a command that works on an installation: with no other given, that of `dev`."""
    settings = (flags or Flags()).settings_of_dev()
    logging.getLogger().setLevel(settings.log_level)
    return settings
