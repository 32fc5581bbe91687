"""Where the user's browser comes back to: a listener on loopback, or the command's own prompt.

A callback counts only with the state of the open consent: another page in the browser can call the
listener as well. Everything else is answered with a page that quotes nothing.
"""

import asyncio
import hmac
import os
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.provider_words import CALLBACK_REFUSED
from evergrant_server.core.secret import Secret
from providers.requests.callback_parameters import Query, state_in

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_MAX_REQUEST_BYTES = 64 * 1024
_DONE = "Evergrant has received the provider's answer. Go back to the terminal; this page can be closed."
_NOT_OURS = "This is not the answer that evergrant providers try waits for. It still waits."

Tell = Callable[[str], None]
OpenPage = Callable[[str], bool]


def is_loopback_uri(uri: str) -> bool:
    """Whether a listener on this machine can serve it. Raises Failure INVALID_REQUEST: not a URL."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        detail = "the redirect URI is not an http or https URL without a fragment"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="redirect_uri")
    return parts.scheme == "http" and parts.hostname in _LOOPBACK_HOSTS


class LoopbackListener:
    """Serves one redirect URI on this machine while it is entered (RFC 8252 section 7.3)."""

    def __init__(self, redirect_uri: str, open_page: OpenPage, tell: Tell, timeout_s: float) -> None:
        parts = urlsplit(redirect_uri)
        self._host = parts.hostname or "127.0.0.1"
        self._port = 80 if parts.port is None else parts.port
        self._path = parts.path or "/"
        self._uri = None if self._port == 0 else redirect_uri
        self._open_page = open_page
        self._tell = tell
        self._timeout_s = timeout_s
        self._state: Secret | None = None
        self._received: asyncio.Future[Query] | None = None

    async def __aenter__(self) -> Self:
        host = "::1" if self._host == "::1" else "127.0.0.1"
        try:
            self._server = await asyncio.start_server(self._serve, host, self._port, limit=_MAX_REQUEST_BYTES)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else "unknown reason"
            detail = f"port {self._port} of this machine can't be used ({why}); name another redirect URI"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, field="redirect_uri") from None
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._server.close()

    @property
    def redirect_uri(self) -> str:
        return self._uri or f"http://{self._host}:{self._port}{self._path}"

    async def receive(self, url: str, state: Secret) -> Query:
        """As `CallbackReceiver.receive`."""
        self._state, self._received = state, asyncio.get_running_loop().create_future()
        opened = self._open_page(url)
        self._tell(f"{'If no page opens, open' if opened else 'Open'} this URL in your browser:\n\n  {url}\n")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._received
        except TimeoutError:
            detail = f"no answer came to {self.redirect_uri} within {self._timeout_s:g} seconds"
            raise Failure(ErrorCode.CONSENT_EXPIRED, detail) from None
        finally:
            self._state = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                status, text = self._answer(*await _read_request(reader))
        except (ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            status, text = "400 Bad Request", _NOT_OURS
        page = f"<!doctype html><title>Evergrant</title><p>{text}</p>".encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(page)}\r\n"
            "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n"
        )
        with suppress(ConnectionError):
            writer.write(head.encode() + page)
            await writer.drain()
        writer.close()

    def _answer(self, path: str, query: Query) -> tuple[str, str]:
        if path != self._path or self._state is None or self._received is None:
            return "404 Not Found", _NOT_OURS
        problem = state_problem(query, self._state)
        if problem is not None:
            self._tell(f"An answer was ignored: {problem}. Still waiting.")
            return "400 Bad Request", _NOT_OURS
        if not self._received.done():
            self._received.set_result(query)
        return "200 OK", _DONE


def state_problem(query: Query, state: Secret) -> str | None:
    """Why a callback is not of the open consent; None when it is."""
    try:
        returned = state_in(query)
    except Failure as failure:
        return failure.detail.removeprefix(CALLBACK_REFUSED).rstrip(".")
    return (
        None if hmac.compare_digest(returned.reveal(), state.reveal()) else "its state is of another request"
    )


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, Query]:
    """The path, and the parameters of a GET's query or a POST's form. Raises ValueError."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    parts = urlsplit(target)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if method == "POST":  # response_mode=form_post
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        size = int(headers.get("content-length", "0"))
        if not 0 <= size <= _MAX_REQUEST_BYTES:
            raise ValueError("too large")
        query += parse_qsl((await reader.readexactly(size)).decode(), keep_blank_values=True)
    return parts.path, query


class PastedCallback:
    """For a redirect URI that is not on this machine: the user pastes the URL from the browser."""

    def __init__(
        self, redirect_uri: str, open_page: OpenPage, tell: Tell, read_line: Callable[[], str]
    ) -> None:
        self.redirect_uri = redirect_uri
        self._open_page = open_page
        self._tell = tell
        self._read_line = read_line

    async def receive(self, url: str, state: Secret) -> Query:
        """As `CallbackReceiver.receive`. Asks again after a URL of another consent."""
        self._open_page(url)
        self._tell(f"Open this URL in your browser:\n\n  {url}\n")
        self._tell(f"Afterwards it shows a page of {self.redirect_uri}. Paste that page's whole URL:")
        while True:
            line = await _in_thread(self._read_line)
            if not line:
                raise Failure(ErrorCode.CONSENT_EXPIRED, "the input ended before the answer was pasted")
            line = line.strip()
            query = parse_qsl(urlsplit(line).query, keep_blank_values=True)
            problem = state_problem(query, state)
            if problem is None:
                return query
            self._tell(f"That is not the answer: {problem}. Paste the URL again:")


async def _in_thread(call: Callable[[], str]) -> str:
    """Wait for a blocking call without holding up the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def run() -> None:
        value = call()
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(value))

    Thread(target=run, daemon=True).start()
    return await done
