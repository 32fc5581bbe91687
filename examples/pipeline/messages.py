"""The pipeline's input and result: names and counts."""

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
    """The number of records, their ids, and the generation of the grant that read them."""

    count: int
    ids: list[str]
    generation: int
