"""A subject's browser at our pages: opens a link, goes on, comes back from the provider."""

import html
import re
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2

from evergrant_server.core.connections.consent import Consent, hash_link
from tests.fakes.api import Api

_LEAVING = re.compile(r'<meta http-equiv="refresh" content="0;url=([^"]+)">')
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]+)"')


async def consent_of(api: Api, connect_url: str) -> Consent:
    """What the store says of it."""
    async with api.worker.read() as tx:
        found = await tx.consents.by_link(hash_link(connect_url.rpartition("/")[2]))
    assert found is not None
    return found


def leads_to(answer: httpx2.Response) -> str | None:
    """Where a page sends the browser on."""
    leaving = _LEAVING.search(answer.text)
    return None if leaving is None else html.unescape(leaving.group(1))


class Visitor:
    """One browser with its own cookies. What it was sent away with is kept for tests to bend."""

    def __init__(self, api: Api) -> None:
        self.browser = api.browser()
        self.provider_url = ""

    async def open(self, connect_url: str) -> httpx2.Response:
        return await self.browser.get(connect_url)

    async def csrf(self, connect_url: str) -> str:
        """The token of the page's form."""
        shown = await self.open(connect_url)
        found = _CSRF.search(shown.text)
        assert found is not None, shown.text
        return found.group(1)

    async def go_on(self, connect_url: str) -> httpx2.Response:
        """Open the page and press its button."""
        return self.left(await self.browser.post(connect_url, data={"csrf": await self.csrf(connect_url)}))

    def left(self, answer: httpx2.Response) -> httpx2.Response:
        """Note where a page sends the browser."""
        self.provider_url = leads_to(answer) or self.provider_url
        return answer

    @property
    def sent(self) -> dict[str, str]:
        """The parameters of the authorization request."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.provider_url).query).items()}

    async def come_back(self, path: str | None = None, **params: str) -> httpx2.Response:
        """Where the provider sends the browser: by default with the state it was given and a code."""
        given = {"state": self.sent["state"], "code": "code-1", **params}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        return await self.browser.get(f"{path or self.sent['redirect_uri']}?{query}")

    async def raw(self, query: str) -> httpx2.Response:
        return await self.browser.get(f"{self.sent['redirect_uri']}?{query}")

    async def follow(self, answer: httpx2.Response) -> httpx2.Response:
        """Follow redirects on our own pages."""
        while answer.status_code == 303 and urlsplit(answer.headers["location"]).netloc == "":
            answer = await self.browser.get(answer.headers["location"])
        return answer
