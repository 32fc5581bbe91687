"""Settings for a lost database or region: backups, which region this is, and what waits for the other."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, model_validator
from pydantic_settings import NoDecode

from evergrant_server.core.ids import is_slug
from evergrant_server.core.model import CheckedModel
from evergrant_server.settings.types import Duration, read_duration, split

_SHORTEST_AUTHORITY = timedelta(seconds=2)  # a third of it is the time between two renewals


class RegionSettings(CheckedModel):
    """What processes do where another region has a standby of the database (docs/guide/regions.md)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    region: str = ""
    """The name of this region, where another one has a standby of the database; empty: there is one region.
    EVERGRANT_DATABASE_URL names this region's servers alone. Needs PostgreSQL."""
    region_wait: Duration = timedelta(seconds=5)
    """How long a refresh waits until the other region has what was committed before it is sent. Then the
    other region counts as away, until it confirms again."""
    region_away: Literal["continue", "stop"] = "continue"
    """What refreshes do while the other region is away: they go on here with an alarm, and a fail-over in
    this time loses their tokens (`region status` counts them); or they stop."""
    region_authority: Annotated[timedelta, BeforeValidator(read_duration)] = timedelta(0)
    """How long a region may lease and refresh after the other one last confirmed; 0: without a bound. The
    price: while the other region is away, leases stop here after this time, until `region detach`. Without
    it a region that comes back after a fail-over may lease again: end its processes before `region promote`.
    The same in both regions, such as 10s."""
    audit_durability: Literal["local", "region"] = "local"
    """Whether a lease waits until the other region has its audit record, for tenants that haven't chosen
    (`tenants durability`)."""

    region_approvers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = ()
    """Persons two of whom must approve `region promote`: NAME=KEY, as `region approver NAME` prints it.
    Comma-separated; empty: who is on the host decides alone. The same in both regions."""

    @model_validator(mode="after")
    def _check_region(self) -> "RegionSettings":
        if self.region and not is_slug(self.region):
            raise ValueError("EVERGRANT_REGION: use lower-case letters, digits and -, such as eu-west")
        if timedelta(0) < self.region_authority < _SHORTEST_AUTHORITY or self.region_authority < timedelta(0):
            raise ValueError("EVERGRANT_REGION_AUTHORITY: use 2s or longer, or 0")
        return self


class BackupSettings(CheckedModel):
    """What `backup` needs, and when `doctor` asks for a drill."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    postgres_bin: Path | None = None
    """The folder of PostgreSQL's own programs (`pg_basebackup`, `pg_ctl`, `pg_restore` and others), for
    `backup`; empty: Debian's folder of the backup's version, else where the shell finds them."""
    backup_drill_interval: Duration = timedelta(days=35)
    """How old the last `backup drill` that found nothing wrong may become before `doctor` asks for one."""
