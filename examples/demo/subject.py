"""A scripted subject with a browser: opens a link, logs in, allows or declines."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpx2

from examples.demo.forms import Button, HtmlForm, read_forms, read_refresh

_MOST_STEPS = 30
_REDIRECTS = (301, 302, 303, 307, 308)


class LostSubject(RuntimeError):
    """The pages led in a circle, or to a page without a way on."""


@dataclass(frozen=True)
class Landing:
    """The final page. `response` is None when the URL was not opened."""

    url: str
    response: httpx2.Response | None
    pages: int  # forms that were filled in


class Subject:
    """One subject in one browser, which keeps cookies as long as this object exists.

    It follows redirects itself, so a test can stop before a URL that no server serves.
    """

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._browser = httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=120)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._browser.aclose()

    async def consent(self, url: str, *, allow: bool = True, stop_before: str | None = None) -> Landing:
        """Follow the pages from `url` until one has no form.

        A URL that begins with `stop_before` is returned instead of opened. Raises LostSubject after
        thirty steps, or when the login page comes back.
        """
        request, pages = self._browser.build_request("GET", url), 0
        logged_in = False
        for _ in range(_MOST_STEPS):
            if stop_before is not None and str(request.url).startswith(stop_before):
                return Landing(str(request.url), None, pages)
            response = await self._browser.send(request)
            if response.status_code in _REDIRECTS:
                request = self._redirected(request, response)
                continue
            target = read_refresh(response.text) if response.status_code == 200 else None
            if target is not None:
                request = self._browser.build_request("GET", urljoin(str(response.url), target))
                continue
            form = _form_to_fill(response)
            if form is None:
                return Landing(str(response.url), response, pages)
            if form.name_of("password"):
                if logged_in:
                    raise LostSubject(f"the login page at {_place(response)} came back")
                logged_in = True
            request, pages = self._submitted(form, response, allow), pages + 1
        raise LostSubject(f"no end after {_MOST_STEPS} steps, last at {_place(response)}")

    def _redirected(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Request:
        target = urljoin(str(request.url), response.headers["location"])
        if response.status_code in (307, 308) and request.method == "POST":
            kept = {"content-type": request.headers["content-type"]}
            return self._browser.build_request("POST", target, content=request.content, headers=kept)
        return self._browser.build_request("GET", target)

    def _submitted(self, form: HtmlForm, page: httpx2.Response, allow: bool) -> httpx2.Request:
        values = dict(form.fields)
        password = form.name_of("password")
        if password is not None:
            values[form.name_of("text") or form.name_of("email") or "username"] = self._user
            values[password] = self._password
        pressed = _pick(form, allow)
        if pressed is not None and pressed.name:
            values[pressed.name] = pressed.value
        target = urljoin(str(page.url), form.action or str(page.url))
        if form.method != "post":
            return self._browser.build_request("GET", target, params=values)
        return self._browser.build_request("POST", target, data=values, headers=_origin(page))


def _form_to_fill(response: httpx2.Response) -> HtmlForm | None:
    if response.status_code != 200 or "html" not in response.headers.get("content-type", ""):
        return None
    return next((form for form in read_forms(response.text) if form.buttons), None)


def _pick(form: HtmlForm, allow: bool) -> Button | None:
    """The button to press. Where one is named `allow`, that one allows and any other declines."""
    yes = [button for button in form.buttons if button.name == "allow"]
    if not yes:
        return form.buttons[0]
    if allow:
        return yes[0]
    return next((button for button in form.buttons if button.name != "allow"), None)


def _origin(page: httpx2.Response) -> dict[str, str]:
    """The headers in which a browser names the form's page: only `null` under `no-referrer`.

    Fetch standard, "append a request `Origin` header": a page's referrer policy applies to
    navigations that are not CORS requests, on its own origin too.
    """
    if page.headers.get("referrer-policy", "").lower() == "no-referrer":
        return {"origin": "null"}
    parts = urlsplit(str(page.url))
    return {"origin": f"{parts.scheme}://{parts.netloc}", "referer": str(page.url)}


def _place(response: httpx2.Response) -> str:
    return str(response.url.copy_with(query=None))
