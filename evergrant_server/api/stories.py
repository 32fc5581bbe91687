"""`POST /temporal/decode`: Temporal's remote codec. By it people read connections' stories in Temporal's UI.

The UI's page calls it, from its own origin and with the session that its reader has at Evergrant. There is no
`/encode`: what a person sends from the UI stays plain, and is read all the same.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext, ReadStory
from evergrant_server.access.people import origin_of, require_same_origin
from evergrant_server.api.console.key_sessions import key_caller
from evergrant_server.api.http.call import ApiCall, api_context, authenticated, bearer_scheme
from evergrant_server.api.http.models import Body, View
from evergrant_server.core.access import STORY_ACTIONS
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(tags=["audit"])

PATH = "/temporal/decode"
_HEADERS = ("Authorization", "Authorization-Extras", "Content-Type", "X-Namespace")
_HIDDEN = (ErrorCode.NOT_FOUND, ErrorCode.NOT_PERMITTED)


class EncodedPayloads(Body):
    """Payloads as Temporal's JSON has them: `metadata` and `data` in base64."""

    payloads: Annotated[list[dict[str, Any]], Field(max_length=10_000)]


class DecodedPayloads(View):
    payloads: list[dict[str, Any]]


async def _reader(request: Request, _: Annotated[object, Depends(bearer_scheme)]) -> ApiCall:
    """The request of an app or person, or of a browser that is logged in to the console. Temporal's clients
    add parameters of their own to its query.

    Raises Failure UNAUTHENTICATED, TENANT_DISABLED, APP_DISABLED, CROSS_SITE_REQUEST, RATE_LIMITED.
    """
    api = api_context(request)
    caller = await _browser_caller(api, request) or await authenticated(api, request, _ui_origins(api))
    await api.limits.count_request(request.scope, caller.app)
    return ApiCall.of(api, request, caller)


async def _browser_caller(api: ApiContext, request: Request) -> Caller | None:
    """The app whose key was pasted into the console in this browser; None without its cookie."""
    if "authorization" in request.headers:
        return None
    by_key = await key_caller(api, request)
    if by_key is None:
        return None
    require_same_origin(api, request, _ui_origins(api))
    return by_key.caller


@router.post(PATH)
async def decode_payloads(
    body: EncodedPayloads, call: Annotated[ApiCall, Depends(_reader)]
) -> DecodedPayloads:
    """Open payloads of connections' workflows for who may read their stories; a sentence stands in for those
    that can't be opened, or may not."""
    stories = _Stories(call)
    try:
        payloads = await call.api.link.read_payloads(body.payloads, stories.may_read)
    except ValueError as error:
        raise invalid_request("payloads", f"payloads: {error}") from None
    stories.require_any()
    return DecodedPayloads(payloads=payloads)


class _Stories:
    """Which stories the caller of one request may read."""

    def __init__(self, call: ApiCall) -> None:
        self._call = call
        self._refusals: dict[str, Failure | None] = {}  # by connection; None: it may be read

    async def may_read(self, story: ReadStory | None) -> bool:
        if story is None:  # a payload of the installation's own
            return self._call.tenant == self._call.api.settings.tenant and self._reads_all()
        if story.tenant != self._call.tenant:
            self._refusals[f"{story.tenant} {story.connection_id}"] = Failure(ErrorCode.NOT_FOUND)
            return False
        if story.connection_id not in self._refusals:
            self._refusals[story.connection_id] = await self._refusal(story)
        return self._refusals[story.connection_id] is None

    def require_any(self) -> None:
        """Raise Failure NOT_FOUND, NOT_PERMITTED when the caller may read none of the stories at all."""
        refusals = list(self._refusals.values())
        if refusals and all(refusals) and not self._reads_all():
            assert refusals[0] is not None
            raise refusals[0]

    def _reads_all(self) -> bool:
        return any(self._call.allows(action, Target()) for action in STORY_ACTIONS)

    async def _refusal(self, story: ReadStory) -> Failure | None:
        try:
            async with self._call.api.store.read() as tx:
                await self._call.visible_connection(tx, story.connection_id, *STORY_ACTIONS)
        except Failure as failure:
            if failure.code not in _HIDDEN:
                raise
            return failure
        return None


class UiOrigin:
    """Lets the Temporal UI's origin call the codec from a browser, and no other (Fetch section 3.2)."""

    def __init__(self, app: ASGIApp, ui_url: str) -> None:
        self._app = app
        self._with_cors = CORSMiddleware(
            app,
            allow_origins=[origin_of(ui_url)],
            allow_methods=["POST"],
            allow_headers=_HEADERS,
            allow_credentials=True,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._with_cors if scope["type"] == "http" and scope["path"] == PATH else self._app
        await app(scope, receive, send)


def _ui_origins(api: ApiContext) -> tuple[str, ...]:
    """The origin of the Temporal UI, if it is known."""
    url = api.settings.temporal_ui_url
    return (origin_of(url),) if url else ()
