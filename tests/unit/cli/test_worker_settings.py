"""What a worker tells Temporal's SDK of its settings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import worker
from evergrant_server.core.clock import SystemClock
from evergrant_server.settings import load_settings


def test_a_worker_keeps_as_many_workflows_in_memory_as_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: dict[str, Any] = {}
    monkeypatch.setattr(worker, "Worker", lambda *_, **options: told.update(options))
    monkeypatch.setenv("EVERGRANT_CACHED_WORKFLOWS", "7000")
    settings = load_settings(data_dir=tmp_path)
    platform = SimpleNamespace(client=None, settings=settings, ring=None, clock=SystemClock())
    worker._temporal_worker(cast(Any, platform), cast(Any, SimpleNamespace(activities=[])))
    assert told["max_cached_workflows"] == 7_000
