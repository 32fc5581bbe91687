"""The counterpart of a lease: a FastAPI POST route that only parses and answers.

`python -m bench.bare PORT BYTES` serves it as `python -m evergrant_server serve` serves the API:
with the same configuration of granian and the garbage collector. It reads the body into a pydantic
model and answers with a model of about `BYTES` bytes.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict

from bench.load import HOST
from evergrant_server.cli.serve import granian_server
from evergrant_server.process import exit_process, tune_garbage_collector

_BYTES = "BENCH_ANSWER_BYTES"  # read by the process that granian starts
_FRAME = '{"access_token":""}'


class BareRequest(BaseModel):
    """The members of a lease request."""

    model_config = ConfigDict(extra="forbid")

    integration: str
    subject: str
    label: str = "default"


class BareAnswer(BaseModel):
    access_token: str


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    tune_garbage_collector()
    yield


def _app() -> FastAPI:
    app = FastAPI(openapi_url=None, lifespan=_lifespan)
    token = "a" * max(int(os.environ.get(_BYTES, "300")) - len(_FRAME), 1)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.post("/v1/lease")
    async def lease(body: BareRequest, response: Response) -> BareAnswer:
        response.headers["Cache-Control"] = "no-store"
        return BareAnswer(access_token=token)

    return app


application = _app()


def main(port: int, size: int) -> None:
    """Serve until a signal ends it."""
    os.environ[_BYTES] = str(size)
    granian_server("bench.bare:application", 1, address=HOST, port=port).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    exit_process(0)
