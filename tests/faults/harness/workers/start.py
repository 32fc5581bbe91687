"""What a worker of a case is told before anything else. Imports nothing of the path."""

from pathlib import Path

from pydantic import BaseModel

from tests.faults.harness.instrumentation.passages import Fault


class WorkerStart(BaseModel):
    name: str
    database_url: str
    key_file: Path
    journals: Path
    allow: str
    public_url: str
    plan: list[Fault] = []
    queued: bool = False
    sweeps_after_s: float = 0.0
    repaired_after_s: float = 0.0  # until then its definition can't read the provider's tokens
    patient: bool = False  # it proves that the connection works: a busy machine must not spoil that
