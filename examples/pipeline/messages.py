"""What goes in and comes out of the pipeline: names and counts."""

from dataclasses import dataclass

TASK_QUEUE = "pipeline"
APP = "pipeline"


@dataclass(frozen=True)
class SyncRequest:
    """Which contacts to sync: `connection` is the id of the connection's workflow."""

    connection: str
    integration: str
    subject: str
    resource_url: str


@dataclass(frozen=True)
class SyncReport:
    """What was read: how many records, their ids, and with which generation of the grant."""

    count: int
    ids: list[str]
    generation: int
