"""How `/scim/v2` reads requests and words answers: SCIM's media type, contexts and errors (RFC 7644)."""

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from pydantic import ValidationError
from scim2_models import (
    Context,
    Error,
    InvalidSyntaxException,
    Message,
    Resource,
    SCIMException,
    SearchRequest,
)
from starlette.exceptions import HTTPException
from starlette.responses import Response

from evergrant_server.api.http.call import ApiCall, api_context, authenticated
from evergrant_server.api.leavers.scim_resources import POLICY
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target

MEDIA_TYPE = "application/scim+json"
_SCIM_TYPES = {ErrorCode.ALREADY_EXISTS: "uniqueness", ErrorCode.INVALID_REQUEST: "invalidValue"}

Read = TypeVar("Read", bound=Resource[Any])


class ScimRoute(APIRoute):
    """A route whose failures are SCIM's (RFC 7644 section 3.12)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Failure as failure:
                return _refusal(failure)
            except SCIMException as refused:
                return _problem(refused.to_error())
            except ValidationError as errors:
                return _problem(Error.from_validation_errors(errors)[0])
            except HTTPException as refused:
                return _problem(Error(status=refused.status_code, detail=refused.detail))

        return answer


async def _directory(request: Request) -> ApiCall:
    """The call of an app that is the tenant's directory. Raises Failure UNAUTHENTICATED, NOT_PERMITTED."""
    api = api_context(request)
    caller = await authenticated(api, request)
    await api.limits.count_request(request.scope, caller.app)
    call = ApiCall.of(api, request, caller)
    request.app.state.networks.note(call)
    call.require_permit(Action.DIRECTORY, of=Target())
    return call


DirectoryCall = Annotated[ApiCall, Depends(_directory)]


async def payload_of(call: ApiCall) -> Any:
    """The body. Raises SCIMException."""
    try:
        return json.loads(await call.request.body())
    except (ValueError, RecursionError):
        raise InvalidSyntaxException(detail="The body isn't JSON.") from None


async def read_resource(call: ApiCall, model: type[Read], context: Context) -> Read:
    payload = await payload_of(call)
    return model.model_validate(payload, scim_ctx=context, scim_policy=POLICY)


def scim_answer(
    shown: Resource[Any] | Message,
    context: Context,
    status: int = 200,
    response_parameters: SearchRequest[Any] | None = None,
    **headers: str,
) -> Response:
    text = shown.model_dump_json(
        scim_ctx=context, response_parameters=response_parameters, scim_policy=POLICY
    )
    return Response(text, status, headers, MEDIA_TYPE)


def _problem(error: Error, headers: dict[str, str] | None = None) -> Response:
    return Response(error.model_dump_json(), error.status or 400, headers, MEDIA_TYPE)


def _refusal(failure: Failure) -> Response:
    """A failure as SCIM words it, with its repair."""
    headers: dict[str, str] = {}
    if failure.rule.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if failure.retry_after is not None:
        headers["Retry-After"] = str(max(round(failure.retry_after), 1))
    detail = f"{failure.detail} {failure.repair}".strip()
    scim_type = _SCIM_TYPES.get(failure.code)
    return _problem(Error(status=failure.rule.status, scim_type=scim_type, detail=detail), headers)
