"""The first requests to a process wait for no preparation of the others, and neither do leases."""

import asyncio
import sys
from threading import get_ident
from typing import Any

from fastapi import FastAPI

from evergrant_server.api.app import ROUTERS, prepare_routes
from tests.fakes.api import Api


def test_routes_are_prepared_before_the_first_request():
    prepared, unprepared = _app_of_all_routes(), _app_of_all_routes()
    prepare_routes(prepared)
    first = _calls_of_matching(prepared, "/v1/no-such-path")
    assert first == _calls_of_matching(prepared, "/v1/no-such-path")
    assert first < _calls_of_matching(unprepared, "/v1/no-such-path") / 20


async def test_the_document_and_its_page_are_made_once_and_beside_the_event_loop(api: Api):
    make, threads = api.app.openapi, list[int]()

    def counted() -> dict[str, Any]:
        threads.append(get_ident())
        return make()

    api.app.openapi = counted
    answers = await asyncio.gather(*(api.get(path) for path in ("/openapi.json", "/docs") * 3))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["content-type"] for answer in answers} == {
        "application/json",
        "text/html; charset=utf-8",
    }
    (thread,) = threads
    assert thread != get_ident()


def _app_of_all_routes() -> FastAPI:
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    return app


def _calls_of_matching(app: FastAPI, path: str) -> int:
    """How many functions are called to find out which routes a request is for."""
    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for route in app.routes:
            route.matches(scope)
    finally:
        sys.setprofile(before)
    return calls
