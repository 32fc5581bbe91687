"""The console's style sheet and scripts: files of this repository, and no other origin's."""

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.console.console_pages import STATIC
from evergrant_server.core.errors import ErrorCode, Failure

router = APIRouter(include_in_schema=False)


@router.get("/console/static/{name}")
async def get_static(name: str) -> Response:
    if name not in STATIC:
        raise Failure(ErrorCode.NOT_FOUND)
    content, kind = STATIC[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "public, max-age=3600"})
