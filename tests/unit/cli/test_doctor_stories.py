"""The doctor on stories: the Temporal UI has them opened by this installation, or it names the repair."""

from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from evergrant_server.cli.dev.temporal import temporal_command
from evergrant_server.cli.doctor import CheckFailed, temporal
from tests.fakes.api import SettingsOfTest
from tests.fakes.http_server import served
from tests.fakes.ports import free_port

OURS = "https://evergrant.test/temporal"


def settings(folder: Path, **values: Any) -> SettingsOfTest:
    return SettingsOfTest(data_dir=folder, public_url="https://evergrant.test", **values)


def ui_with(endpoint: str) -> Starlette:
    """A Temporal UI's server with this codec endpoint."""

    async def answer(_: Any) -> JSONResponse:
        return JSONResponse({"Codec": {"Endpoint": endpoint, "IncludeCredentials": True}})

    return Starlette(routes=[Route("/api/v1/settings", answer)])


async def test_a_ui_that_has_them_opened_here_is_right(tmp_path: Path):
    async with served(ui_with(OURS)) as url:
        assert OURS in await temporal.stories(settings(tmp_path, temporal_ui_url=url))


@pytest.mark.parametrize("endpoint", ["", "https://elsewhere.test/temporal"])
async def test_a_ui_that_shows_them_sealed_is_a_problem_with_its_repair(tmp_path: Path, endpoint: str):
    async with served(ui_with(endpoint)) as url:
        with pytest.raises(CheckFailed) as problem:
            await temporal.stories(settings(tmp_path, temporal_ui_url=url))
    assert f"TEMPORAL_CODEC_ENDPOINT={OURS}" in problem.value.repair
    assert (endpoint or "not set") in problem.value.detail


async def test_what_cant_be_known_from_here_is_no_problem(tmp_path: Path):
    away = f"http://127.0.0.1:{free_port()}"
    assert "doesn't say here" in await temporal.stories(settings(tmp_path, temporal_ui_url=away))
    assert "EVERGRANT_TEMPORAL_UI_URL is empty" in await temporal.stories(settings(tmp_path))
    off = await temporal.stories(settings(tmp_path, seal_histories=False))
    assert "EVERGRANT_SEAL_HISTORIES is off" in off


def test_the_ui_of_dev_is_told_where_stories_are_opened(tmp_path: Path):
    command = temporal_command(settings(tmp_path))
    assert command[command.index("--ui-codec-endpoint") + 1] == OURS
