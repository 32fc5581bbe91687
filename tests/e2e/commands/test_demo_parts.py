"""The demo's person fills in pages as a browser would, and its search finds what is there."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, quote

import pytest

from examples.demo.forms import read_forms
from examples.demo.histories import search, timeline
from examples.demo.subject import LostSubject, Subject
from tests.e2e.servers.sleeping_workflow import Naps
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.temporal import running_temporal

CONNECT = """<form method=post><input type=hidden name=csrf value="a&amp;b">
<button type=button>what is this?</button><button>Go on</button></form>"""


class Site:
    """A connect page and a callback, which remember what they were sent."""

    def __init__(self) -> None:
        self.target = ""
        self.posted: dict[str, list[str]] = {}
        self.origin = ""
        self.cookie = ""
        self.callback: dict[str, list[str]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = (await reader.readexactly(int(headers.get("content-length", 0)))).decode()
        method, path, _ = request.split()
        writer.write(self._answer(method, path, headers, body))
        await writer.drain()
        writer.close()

    def _answer(self, method: str, path: str, headers: dict[str, str], body: str) -> bytes:
        if path.startswith("/callback"):
            self.callback = parse_qs(path.partition("?")[2])
            return _page("200 OK", "connected")
        if method == "POST":
            self.posted, self.origin = parse_qs(body), headers.get("origin", "")
            self.cookie = headers.get("cookie", "")
            return _page("303 See Other", "", f"Location: {self.target}")
        return _page("200 OK", CONNECT, "Referrer-Policy: no-referrer", "Set-Cookie: browser=1; HttpOnly")


def _page(status: str, html: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: text/html", f"Content-Length: {len(html)}"]
    return "\r\n".join([*lines, *headers, "Connection: close", "", html]).encode()


@asynccontextmanager
async def connect_page() -> AsyncIterator[tuple[Site, str]]:
    site = Site()
    listener = await asyncio.start_server(site.serve, "127.0.0.1", 0)
    async with listener:
        yield site, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def test_a_person_goes_from_the_connect_page_to_the_callback(tmp_path):
    async with connect_page() as (site, base), running_authorization_server(tmp_path) as server:
        await server.register(f"{base}/callback")
        site.target = (
            f"{server.issuer}/authorize/?response_type=code&client_id={server.client_id}&state=s"
            f"&redirect_uri={quote(base, safe='')}/callback&code_challenge={'a' * 43}"
            "&code_challenge_method=S256"
        )
        landing = await server.scripted_consent(f"{base}/connect/link")
    assert landing.response is not None
    assert landing.response.text == "connected"
    assert landing.pages == 3  # connect, login, allow
    assert site.posted == {"csrf": ["a&b"]}
    assert site.origin == "null"  # what a browser sends from a page with Referrer-Policy: no-referrer
    assert site.cookie == "browser=1"
    assert set(site.callback) == {"code", "state", "iss"}


async def test_a_wrong_password_is_not_tried_again(tmp_path):
    async with running_authorization_server(tmp_path) as server, Subject(server.user, "wrong") as subject:
        with pytest.raises(LostSubject, match="the login page at"):
            await subject.consent(f"{server.issuer}/login/")


def test_forms_are_read_as_a_browser_reads_them():
    page = """<form action="/x?y=1" method="POST"><input name=user><input type=password name=pw>
    <input type=checkbox name=no><input type=checkbox name=yes checked>
    <input type=submit name=allow value="Say &quot;yes&quot;"></form><form></form>"""
    first, second = read_forms(page)
    assert (first.method, first.action) == ("post", "/x?y=1")
    assert first.fields == {"user": "", "pw": "", "yes": "on"}
    assert first.name_of("password") == "pw"
    assert [(button.name, button.value) for button in first.buttons] == [("allow", 'Say "yes"')]
    assert (second.method, second.buttons) == ("get", [])


async def test_the_search_finds_a_secret_in_any_shape(tmp_path):
    secret, hidden = "s3cret-value-of-a-token", "another-secret-value"
    shapes = [secret, *(base64.b64encode(b"x" * shift + hidden.encode()).decode() for shift in range(3))]
    async with running_temporal(tmp_path) as server:
        client = await server.client()
        for number, shape in enumerate(shapes):
            await client.start_workflow(
                Naps.run, 1, id=f"holder-{number}", memo={"note": f"<{shape}>"}, task_queue="nobody"
            )
        names = [f"holder-{number}" for number in range(len(shapes))]
        assert (await search(client, names, [secret])).found_in == ("holder-0",)
        assert (await search(client, names, [hidden])).found_in == tuple(names[1:])
        assert (await search(client, names, ["not-there"])).found_in == ()
        assert [moment.what for moment in await timeline(client, "holder-0")] == ["begins"]
