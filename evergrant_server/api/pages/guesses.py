"""ASGI middleware: an address whose requests are refused too often waits, so that guessing is slow.

A guess is a refused request for a connect link, for a callback with its state, for what a user code of a
device stands for, or for a token of an app.
"""

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evergrant_server.access.context import ApiContext
from evergrant_server.access.limits import RateLimited, is_waiting
from evergrant_server.api.pages.browser import html_response
from evergrant_server.console.pages import Pages
from evergrant_server.policy.networks import caller_address, parse_address
from evergrant_server.problems import problem_response

_PAGES = ("/connect/", "/oauth/callback/")
_PATHS = frozenset({"/oauth/token", "/oauth/device"})
_TOKEN_PATH = "/oauth/token"
_REFUSED = frozenset({400, 401, 403, 404, 409})


class GuessLimit:
    def __init__(self, app: ASGIApp, api: ApiContext, templates: Pages) -> None:
        self._app = app
        self._api = api
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = self._address(scope) if _is_guessed(scope) else None
        if address is None:
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if (
                message["type"] == "http.response.start"
                and message["status"] in _REFUSED
                and not is_waiting(scope)
            ):
                await self._api.limits.count_guess(address)
            await send(message)

        try:
            self._api.limits.require_no_guesser(scope, address)
        except RateLimited as refused:
            await self._refusal(scope, refused)(scope, receive, send)
            return
        await self._app(scope, receive, sending)

    def _address(self, scope: Scope) -> str | None:
        """The client's address; None for one that many clients may share.

        A trusted proxy says it. Without one it is the other end of the connection, unless that is in a
        private network: a proxy that isn't configured, or a host that translates addresses.
        """
        peer = scope["client"][0] if scope.get("client") else None
        forwarded = Headers(scope=scope).getlist("x-forwarded-for")
        proxies = self._api.settings.trusted_proxies
        address = caller_address(peer, forwarded, proxies)
        if address is not None and address != peer:
            return address
        try:
            shared = peer is None or not parse_address(peer).is_global
        except ValueError:
            shared = True
        return None if shared else peer

    def _refusal(self, scope: Scope, refused: RateLimited) -> Response:
        if scope["path"] == _TOKEN_PATH:
            return problem_response(refused, self._api.settings.public_url)
        response = html_response(self._templates.failed(refused), refused.rule.status)
        response.headers["Retry-After"] = str(int(refused.retry_after or 1))
        return response


def _is_guessed(scope: Scope) -> bool:
    return scope["type"] == "http" and (scope["path"].startswith(_PAGES) or scope["path"] in _PATHS)
